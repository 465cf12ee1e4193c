"""A light streaming client of OpenAI-style servers: what it takes itself is taken from the server on the same box.

Prompts go as token ids (or as words, for servers that refuse ids), greedy, past the end-of-sequence token; a connection
a request. A closed loop: every client sends its next request when the last one has ended. Called by compare.py and
http_overhead.py.

It stands in for clients on other machines, which cost a server what it sends and nothing more. One thread reads all
streams; it sleeps until something came and then for `Load.nap_s` more, so that a step's tokens are read together and a
send of the server does not wake it each time. Nothing is parsed before the load has ended. Times are the kernel's
stamps of the last segment of what was read, not the time at which this got to it: sleeping does not show in them, as
long as it is shorter than a step. Prompts are made before the clock starts. A token takes about 15 us of CPU at 64
streams (`Result.client_cpu_s`), 5 us where several steps are read together; asyncio's streams and parsing every event
as it came took 65 us.
"""

from __future__ import annotations

import json
import random
import select
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

WORDS = ("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state")
_READ_BYTES = 1 << 16
_SO_TIMESTAMPNS = 35  # Linux's asm-generic/socket.h; Python has no name for it
_STAMP = struct.Struct("qq")


class ServerError(Exception):
    """A server answered with an error, or not at all."""


@dataclass(frozen=True, slots=True)
class Load:
    """What to send, and where.

    Attributes:
        nap_s: How long the reader sleeps after something came. Tokens that come within it have one arrival; only their
            number is of interest then.
    """

    port: int
    model: str
    clients: int
    per_client: int = 2
    prompt: int = 128
    output: int = 128
    vocabulary: int = 30000
    as_words: bool = False
    timeout_s: float = 600.0
    nap_s: float = 0.002


@dataclass(slots=True)
class Answer:
    """One request as its client saw it; times in seconds of one clock."""

    start: float
    arrivals: list[float] = field(default_factory=list)
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    """A whole load.

    Attributes:
        seconds: From the first request to the last byte of the answers.
        client_cpu_s: What reading took this process.
    """

    seconds: float
    answers: list[Answer]
    client_cpu_s: float

    @property
    def tokens(self) -> int:
        """Of all answers."""
        return sum(answer.tokens for answer in self.answers)


class _Stream:
    """One request on its connection."""

    def __init__(self, port: int, request: bytes) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self.start = time.time()
        self.socket.sendall(request)
        self.socket.setblocking(False)
        self.reads: list[tuple[float, bytes]] = []

    def read(self) -> bool:
        """Takes what is there; False when that was the end."""
        data, notes, _, _ = self.socket.recvmsg(_READ_BYTES, 64)
        if not data:
            self.socket.close()
            return False
        # The kernel stamps nothing that arrived before it learnt that somebody wants stamps.
        seconds, nanoseconds = _STAMP.unpack(notes[0][2]) if notes else (time.time(), 0)
        self.reads.append((seconds + nanoseconds * 1e-9, data))
        return True

    def answer(self) -> Answer:
        """Parses the whole stream.

        Raises:
            ServerError: It is no stream of completions.
        """
        answer = Answer(self.start)
        whole = b"".join(data for _, data in self.reads)
        if b" 200" not in whole.partition(b"\r\n")[0]:
            raise ServerError(whole[:1000].decode(errors="replace") or "the server hung up")
        for arrival, event in _events(self.reads):
            if "error" in event:
                raise ServerError(str(event["error"])[:500])
            choices = event.get("choices")
            if choices and (choices[0].get("text") or not choices[0].get("finish_reason")):
                answer.arrivals.append(arrival)
            if event.get("usage"):
                answer.tokens = int(event["usage"].get("completion_tokens", 0))
        answer.tokens = answer.tokens or len(answer.arrivals)
        if not answer.arrivals:
            raise ServerError("the stream held no tokens")
        return answer


def _events(reads: list[tuple[float, bytes]]) -> Iterator[tuple[float, dict[str, Any]]]:
    """Yields every event with the time at which it was whole."""
    rest = b""
    for arrival, data in reads:
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data: {"):
                yield arrival, json.loads(line[6:])


def run_load(load: Load) -> Result:
    """Sends all requests and reads their answers.

    Raises:
        ServerError: A request failed.
        TimeoutError: They did not end in `load.timeout_s`.
    """
    chance = random.SystemRandom()

    def make_request(output: int) -> bytes:
        if load.as_words:
            prompt: object = " ".join(chance.choices(WORDS, k=load.prompt))
        else:
            prompt = [chance.randrange(100, load.vocabulary) for _ in range(load.prompt)]
        body = {"model": load.model, "prompt": prompt, "max_tokens": output, "temperature": 0, "stream": True}
        payload = json.dumps({**body, "ignore_eos": True, "stream_options": {"include_usage": True}}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{load.port}\r\nContent-Type: application/json\r\n"
        return f"{head}Connection: close\r\nContent-Length: {len(payload)}\r\n\r\n".encode() + payload

    for stream in _run(load, [make_request(4)]):
        stream.answer()
    requests = [make_request(load.output) for _ in range(load.clients * load.per_client)]
    start_cpu = time.process_time()
    streams = _run(load, requests)
    cpu = time.process_time() - start_cpu
    answers = [stream.answer() for stream in streams]
    begin, end = min(stream.start for stream in streams), max(stream.reads[-1][0] for stream in streams)
    return Result(end - begin, answers, cpu)


def _run(load: Load, requests: list[bytes]) -> list[_Stream]:
    deadline = time.monotonic() + load.timeout_s
    waiting = iter(requests)
    done: list[_Stream] = []
    open_streams: dict[int, _Stream] = {}
    with select.epoll() as poll:

        def begin() -> None:
            request = next(waiting, None)
            if request is not None:
                stream = _Stream(load.port, request)
                open_streams[stream.socket.fileno()] = stream
                poll.register(stream.socket, select.EPOLLIN)

        for _ in range(load.clients):
            begin()
        while open_streams:
            if not poll.poll(max(0.0, deadline - time.monotonic())):
                raise TimeoutError(f"{len(open_streams)} streams did not end in {load.timeout_s:g} s")
            time.sleep(load.nap_s)
            for number, _ in poll.poll(0):
                stream = open_streams[number]
                if not stream.read():
                    done.append(open_streams.pop(number))
                    begin()
    return done
