"""The same requests to a real Triton and to Millpond; prints what differs as JSON.

    python -m bench.serving.triton_differential --triton VENV [--count 2000] [--seed 7] [--json FILE] [--page FILE]

VENV is a virtual environment with nvidia-pytriton 0.7.0, which carries Triton 2.51 for CPUs. Both servers get a copy of
the recordings' models and of those that `triton_models` writes. An answer is equal when its status and its JSON, bytes,
messages or error are, after counters, times and paths of this machine were taken out. Bar: 95 % equal.

Triton is asked first and ours after it, in the same order. A request that ends Triton is listed and left out of the
count, with what is left of its scene; both servers go on fresh after it. `--recording FILE` keeps Triton's answers, or
takes them from there, so that ours can be compared again without it. `--page` writes the page of differences.
"""

from __future__ import annotations

import argparse
import json
import pickle
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from bench.serving.triton_asks import Answer, Ask, HttpAsk, made_region, send_grpc, send_http
from bench.serving.triton_corpus import REGION
from bench.serving.triton_corpus_grpc import corpus
from bench.serving.triton_models import write_models
from bench.serving.triton_pair import Server, started
from bench.serving.triton_report import Row, page, report

GONE = ("closed", "silence", "UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "INTERNAL", "UNKNOWN")


@dataclass(slots=True)
class Played:
    """What a server answered: by scene and place in it; `ended` are the requests that ended the server."""

    answers: dict[tuple[int, int], Answer] = field(default_factory=dict)
    ended: list[tuple[int, int]] = field(default_factory=list)


def play(scenes: list[list[Ask]], server: Server, ended: list[tuple[int, int]] | None) -> Played:
    """Sends all scenes to a server; `ended` says where another ended, None watches for it."""
    played = Played(ended=[] if ended is None else ended)
    with ExitStack() as stack:
        stack.enter_context(made_region(REGION, bytes(range(128)) + bytes(128)))
        stack.enter_context(started(server))
        channel = fresh_channel(server)
        for number, scene in enumerate(scenes):
            for place, ask in enumerate(scene):
                spot = (number, place)
                if ended is None:
                    played.answers[spot] = sent(ask, server, channel)
                    if played.answers[spot].status in GONE and not server.is_alive(1.0):
                        played.ended.append(spot)
                elif spot not in played.ended:
                    played.answers[spot] = sent(ask, server, channel)
                if spot in played.ended:
                    played.answers.pop(spot, None)
                    channel.close()
                    server.restart()
                    channel = fresh_channel(server)
                    for again in scenes[0]:
                        sent(again, server, channel)
                    break
            if number % 100 == 99:
                print(f"{server.name}: {number + 1} of {len(scenes)} scenes", file=sys.stderr, flush=True)
        channel.close()
    return played


def sent(ask: Ask, server: Server, channel: grpc.Channel) -> Answer:
    """Sends one request."""
    return send_http(ask, server.peer) if isinstance(ask, HttpAsk) else send_grpc(ask, channel)


def fresh_channel(server: Server) -> grpc.Channel:
    """Returns a channel that shares no connection with one before it."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    return grpc.insecure_channel(f"127.0.0.1:{server.peer.grpc}", options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--triton", type=Path, required=True, help="Virtual environment with nvidia-pytriton 0.7.0.")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--recording", type=Path, help="Where Triton's answers are kept; taken from there when it is.")
    given = parser.parse_args()
    scenes = corpus(given.seed, given.count)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        write_models(work / "models")
        real, ours = (Server(which, given.triton, work / "models", work) for which in ("triton", "millpond"))
        if given.recording and given.recording.exists():
            theirs: Played = pickle.loads(given.recording.read_bytes())
        else:
            theirs = play(scenes, real, None)
            if given.recording:
                given.recording.write_bytes(pickle.dumps(theirs))
        mine = play(scenes, ours, theirs.ended)
    rows = [
        Row(ask, theirs.answers[spot], mine.answers[spot])
        for spot, ask in in_order(scenes)
        if spot in theirs.answers and spot in mine.answers
    ]
    found = report(rows, [scenes[scene][place] for scene, place in theirs.ended], sum(map(len, scenes)))
    text = json.dumps(found, indent=2, ensure_ascii=False)
    if given.json:
        given.json.write_text(text + "\n")
    if given.page:
        given.page.write_text(page(found, given.seed))
    print(text)
    sys.exit(found["share_equal"] < 0.95)


def in_order(scenes: list[list[Ask]]) -> list[tuple[tuple[int, int], Ask]]:
    """Returns every request with its scene and its place in it."""
    return [((number, place), ask) for number, scene in enumerate(scenes) for place, ask in enumerate(scene)]


if __name__ == "__main__":
    main()
