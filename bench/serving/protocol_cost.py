"""Processor time of the gateway by protocol, a request and a token, without an engine beside it.

    python -m bench.serving.protocol_cost --model DIR [--clients 8] [--rounds 30]

The ports are in a process of their own over an engine that gives every running request a token each `--step-ms` and
costs nothing else; the clients are here. In a round every way is asked twice, for few and for many tokens, in an order
that turns. The kernel's count of the ports' threads gives two numbers: what a token takes is the difference by the
tokens between, and what a request takes is the rest. Both hold the system calls, and neither waits for anything, so
they move by a few percent where throughput beside a real engine moves by ten. The message of a step from a real engine
is the same for all and left out. One way is there twice, which shows the noise.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import statistics
import subprocess
import sys

import uvloop

from bench.serving.protocol_clients import Dialect, Line
from bench.serving.protocol_ports import all_dialects, all_ports
from bench.serving.protocol_rounds import processor_s, turned
from millpond.api.request import Request
from millpond.inference.engine.stream import OutputStream
from millpond.inference.text import TextModel, load_text
from tests.support.pushed_engine import PushedEngine

_SAID = " mill turns the pond by the water of many rivers and so on"
_FEW, _MANY = 2, 66


class SteppedEngine(PushedEngine):
    """Gives every request a token a step until it has what it asked for."""

    def __init__(self, text: TextModel) -> None:
        super().__init__(text)
        self._said = text.tokenizer.encode(_SAID, False)
        self._num_given: dict[str, int] = {}

    def generate(self, request: Request) -> OutputStream:
        stream = super().generate(request)
        self._num_given[self.routes[-1].wire_id] = 0
        return stream

    async def run(self, step_s: float) -> None:
        """Steps for ever."""
        while True:
            await asyncio.sleep(step_s)
            for route in self.routes:
                given = self._num_given[route.wire_id] = self._num_given[route.wire_id] + 1
                is_last = given == route.request.params.max_tokens
                self.push_to(route, [self._said[given % len(self._said)]], "length" if is_last else None)
            self.routes = [route for route in self.routes if not route.is_finished]


async def serve(model: str, step_ms: float) -> None:
    """The ports' process: prints where they are and serves until its standard input ends."""
    engine = SteppedEngine(load_text(model, None, None))
    async with all_ports(engine) as at:
        stepping = asyncio.create_task(engine.run(step_ms / 1e3))
        print(json.dumps(at), flush=True)
        await asyncio.to_thread(sys.stdin.read)
        stepping.cancel()


async def ask_all(dialect: Dialect, lines: list[Line], name: str, num_tokens: int) -> None:
    """A request of every client at once."""
    prompts = [f"{name}.{number}: the mill by the pond turns slowly" for number in range(len(lines))]
    requests = [dialect.request(prompt, num_tokens) for prompt in prompts]
    await asyncio.gather(*(line.ask(request) for line, request in zip(lines, requests, strict=True)))


async def measure(at: dict[str, str], pid: int, num_clients: int, rounds: int) -> dict[str, list[list[float]]]:
    """Microseconds a request and a token, by way and round; the first round is not counted."""
    dialects = all_dialects(at)
    dialects.append(dataclasses.replace(dialects[0], name=f"{dialects[0].name} again"))
    ways = [(dialect, [await dialect.connect() for _ in range(num_clients)]) for dialect in dialects]
    found: dict[str, list[list[float]]] = {dialect.name: [] for dialect in dialects}
    for number in range(rounds + 1):
        for dialect, lines in turned(ways, number):
            spent = []
            for num_tokens in (_FEW, _MANY):
                before_s = processor_s(pid)
                await ask_all(dialect, lines, f"{number}", num_tokens)
                spent.append((processor_s(pid) - before_s) * 1e6 / num_clients)
            token = (spent[1] - spent[0]) / (_MANY - _FEW)
            if number:
                found[dialect.name].append([spent[0] - token * _FEW, token])
    for line in (line for _, lines in ways for line in lines):
        line.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a model's directory; only its tokenizer is read")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--step-ms", type=float, default=1.0)
    parser.add_argument("--ports", action="store_true", help=argparse.SUPPRESS)  # we are the process of the ports
    args = parser.parse_args()
    if args.ports:
        uvloop.run(serve(args.model, args.step_ms))
        return
    command = [sys.executable, "-m", "bench.serving.protocol_cost", "--ports", "--model", args.model]
    with subprocess.Popen(
        [*command, "--step-ms", str(args.step_ms)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as ports:
        assert ports.stdin is not None
        assert ports.stdout is not None
        at = json.loads(ports.stdout.readline())
        found = asyncio.run(measure(at, ports.pid, args.clients, args.rounds))
        ports.stdin.close()
    for name, numbers in found.items():
        request, token = (statistics.median(values) for values in zip(*numbers, strict=True))
        print(f"{name:16} request {request:6.0f} us  token {token:6.1f} us")


if __name__ == "__main__":
    main()
