"""What each protocol itself adds to a language model's stream: the engine here is a test's, which costs nothing.

    python -m bench.serving.protocol_latency --model DIR [--rounds 200]

All ports and their clients run in this process on one uvloop. Per protocol, in the median of rounds that ask every way
once: microseconds from a client's request to the engine (tokenising is in it), from the engine's first token to the
client, and of a further token from the engine's message until it is written. Where the HTTP server is uvicorn the
system call of a write comes at the end of the loop's turn and is not in the last number.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from pathlib import Path

import uvloop

from bench.serving.protocol_clients import Dialect, Line
from bench.serving.protocol_ports import all_dialects, all_ports
from millpond.api.request import Request
from millpond.inference.engine.stream import OutputStream
from millpond.inference.text import TextModel, load_text
from tests.support.pushed_engine import PushedEngine

_PROMPT = "1.2: The mill by the pond turns slowly while t"
_SAID = " mill turns the pond by the water of many rivers and so on"
_SETTLE_S = 0.0005


class TimedEngine(PushedEngine):
    """Notes when a request reaches it."""

    def __init__(self, text: TextModel) -> None:
        super().__init__(text)
        self.asked = asyncio.Event()
        self.asked_s = 0.0

    def generate(self, request: Request) -> OutputStream:
        stream = super().generate(request)
        self.asked_s = time.perf_counter()
        self.asked.set()
        return stream


async def ask(engine: TimedEngine, dialect: Dialect, line: Line) -> tuple[float, float, float]:
    """Returns the three numbers of one request."""
    tokens = engine.text.tokenizer.encode(_SAID, False)
    engine.routes.clear()
    engine.asked.clear()
    began_s = time.perf_counter()
    answer = asyncio.create_task(line.ask(dialect.request(_PROMPT, 100)))
    await engine.asked.wait()
    up_s = engine.asked_s - began_s
    await asyncio.sleep(_SETTLE_S)
    pushed_s = time.perf_counter()
    engine.push(tokens[:1])
    while not line.pieces:
        await asyncio.sleep(0)
    first_s = line.pieces[0] - pushed_s
    began_s = time.perf_counter()
    for token in tokens[1:]:
        engine.push([token])
    token_s = (time.perf_counter() - began_s) / (len(tokens) - 1)
    await asyncio.sleep(_SETTLE_S)
    engine.push(tokens[:1], "length")
    await answer
    return up_s * 1e6, first_s * 1e6, token_s * 1e6


async def run(model: Path, rounds: int) -> None:
    """Prints a line a protocol."""
    engine = TimedEngine(load_text(str(model), None, None))
    async with all_ports(engine) as at:
        dialects = all_dialects(at)
        lines = [await dialect.connect() for dialect in dialects]
        found = [[await ask(engine, *pair) for pair in zip(dialects, lines, strict=True)] for _ in range(rounds)]
        for line in lines:
            line.close()
    for dialect, numbers in zip(dialects, zip(*found, strict=True), strict=True):
        up, first, token = (statistics.median(values) for values in zip(*numbers, strict=True))
        print(f"{dialect.name:16} up {up:5.0f}  first {first:4.0f}  both {up + first:5.0f}  token {token:5.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a model's directory; only its tokenizer is read")
    parser.add_argument("--rounds", type=int, default=200)
    args = parser.parse_args()
    uvloop.run(run(args.model, args.rounds))


if __name__ == "__main__":
    main()
