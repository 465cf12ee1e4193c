"""Our server and any other OpenAI-style ones, turn by turn: 8 and 32 streaming clients on the same box.

    python -m bench.serving.compare --model DIR --precision int8 --server NAME=COMMAND... --json OUT
        [--clients 8 32] [--rounds 3] [--ready 300] [--words]

COMMAND starts a server on 127.0.0.1 and stays in the foreground; `{model}`, `{precision}`, `{threads}` and `{port}` are
filled in. It is up when GET /v1/models lists a model, whose name the requests then use. Each round starts every server
afresh, one at a time. Output tokens/s over the whole load, TTFT and inter-token times in milliseconds, p50 and p99; for
times a ratio below 1 is ours being faster. Writes OUT, and beside it the same name with .md and .svg.
"""

from __future__ import annotations

import argparse
import http.client
import json
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bench.engine.cases import Peer, end_group
from bench.facts import describe_machine, read_bandwidth
from bench.report import bar_chart, markdown_table, medians, ratios
from bench.serving.client import Load, Result, ServerError, run_load
from millpond.base.machine import read_machine
from millpond.cli.bench.measure import percentile

OURS = "millpond"
OUR_COMMAND = (
    f"env MILLPOND_SPECULATION_MODE=off {sys.executable} -m millpond serve {{model}} --dtype {{precision}} "
    "--port {port} --threads {threads}"
)


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(server: Peer, values: dict[str, str], ready_s: float) -> Iterator[tuple[int, str]]:
    """Starts a server and yields its port and its model's name; ends it with all it started.

    Raises:
        ServerError: It ended, or was not ready in time.
    """
    port = free_port()
    words = shlex.split(server.template)
    for key, value in {**values, "port": str(port)}.items():
        words = [word.replace("{" + key + "}", value) for word in words]
    # Its own words go to our standard error: a pipe that no one reads would stop it.
    child = subprocess.Popen(words, stdout=sys.stderr, stderr=sys.stderr, text=True, start_new_session=True)
    try:
        deadline = time.monotonic() + ready_s
        while (model := served_model(port)) is None:
            if child.poll() is not None:
                raise ServerError(f"{server.name} ended with {child.returncode} before it was ready")
            if time.monotonic() > deadline:
                raise ServerError(f"{server.name} was not ready after {ready_s:.0f} s")
            time.sleep(0.2)
        yield port, model
    finally:
        child.terminate()
        with suppress(subprocess.TimeoutExpired):
            child.wait(20)
        end_group(child)


def served_model(port: int) -> str | None:
    """The first model a server lists; None while it is not up."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/v1/models")
        answer = connection.getresponse()
        return str(json.loads(answer.read())["data"][0]["id"]) if answer.status == 200 else None
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
        return None
    finally:
        connection.close()


def summarise(result: Result) -> dict[str, float]:
    """The figures of one load."""
    answers = result.answers
    first = sorted(answer.arrivals[0] - answer.start for answer in answers)
    gaps = sorted(b - a for answer in answers for a, b in zip(answer.arrivals, answer.arrivals[1:], strict=False))
    figures = {"tokens/s": result.tokens / result.seconds}
    for percent in (50, 99):
        figures[f"TTFT p{percent} ms"] = 1e3 * percentile(first, percent)
    for percent in (50, 99):
        figures[f"inter-token p{percent} ms"] = 1e3 * percentile(gaps, percent) if gaps else 0.0
    return figures


def measure(server: Peer, args: argparse.Namespace, values: dict[str, str]) -> dict[str, Any]:
    """One start of one server, and every number of clients on it."""
    row: dict[str, Any] = {"side": server.name, "read_bytes_per_second": read_bandwidth(args.threads), "figures": {}}
    try:
        with serving(server, values, args.ready) as (port, model):
            for clients in args.clients:
                load = Load(port, model, clients, args.per_client, args.prompt, args.output, as_words=args.words)
                row["figures"][str(clients)] = summarise(run_load(load))
    except (ServerError, OSError, TimeoutError) as error:
        row["error"] = str(error) or type(error).__name__
    return row


def collect(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """`8 clients: tokens/s` -> side -> a value a round."""
    samples: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        for clients, figures in row["figures"].items():
            for name, value in figures.items():
                samples.setdefault(f"{clients} clients: {name}", {}).setdefault(row["side"], []).append(value)
    return samples


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--server", action="append", default=[], type=Peer.parse, metavar="NAME=COMMAND")
    parser.add_argument("--json", type=Path, required=True, metavar="OUT")
    parser.add_argument("--clients", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--per-client", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--output", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=read_machine().usable_cores)
    parser.add_argument("--ready", type=float, default=300.0, help="seconds a server may take to start")
    parser.add_argument("--words", action="store_true", help="send words, for servers that refuse token ids")
    parser.add_argument("--ours", default=OUR_COMMAND, metavar="COMMAND")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    servers = [Peer(OURS, args.ours), *args.server]
    values = {"model": args.model, "precision": args.precision, "threads": str(args.threads)}
    rows: list[dict[str, Any]] = []
    for index in range(args.rounds):
        turn = index % len(servers)
        for server in [*servers[turn:], *servers[:turn]]:
            rows.append({"round": index, **measure(server, args, values)})
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    samples = collect(rows)
    sides = [server.name for server in servers]
    title = f"{Path(args.model).name}, {args.precision}: streaming clients"
    table = f"## {title}\n\n{markdown_table(samples, sides, 'clients and figure')}"
    table += "".join(f"\n- {row['side']}: {row['error']}" for row in rows if "error" in row)
    commands = {server.name: server.template for server in servers}
    document = {"model": Path(args.model).name, "precision": args.precision, "sides": sides, "commands": commands}
    document |= {"rounds": args.rounds, "machine": describe_machine(), "medians": medians(samples)}
    document |= {"ratios": ratios(samples, OURS), "rows": rows}
    args.json.write_text(json.dumps(document, indent=2) + "\n")
    args.json.with_suffix(".md").write_text(table + "\n")
    args.json.with_suffix(".svg").write_text(bar_chart(title, medians(samples), sides))
    print(table)
    return int(any("error" in row and row["side"] == OURS for row in rows))


if __name__ == "__main__":
    sys.exit(main())
