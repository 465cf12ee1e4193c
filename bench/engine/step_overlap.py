"""Whether scheduling beside a step would pay: Python between two steps, or beside the next one in a thread.

    python -m bench.engine.step_overlap --model DIR_OR_GGUF [--dtype w8a8] [--cache-dtype int8] [--threads 2]

The native program alone, with a loop of Python that takes as long as the engine's own part of such a step: nothing,
then between two steps, then beside each step, in turn. `beside / between` below 1 would be what planning ahead saves.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from collections.abc import Callable

from bench.engine.step_profile import load_program, make_step
from millpond.inference.ops.inputs import StepInputs
from millpond.inference.ops.native import NativeProgram, best_isa

POINTS = ((1, 190), (16, 400), (64, 830))  # sequences, and microseconds between the kernels of two of their steps
STEPS, ROUNDS = 30, 12


def count(iterations: int) -> int:
    """Work that holds Python's lock."""
    total = 0
    for i in range(iterations):
        total += i & 3
    return total


class Helper:
    """A thread that counts whenever it is told to."""

    def __init__(self) -> None:
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._iterations = 0
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        while True:
            self._go.acquire()
            count(self._iterations)
            self._done.release()

    def beside(self, iterations: int, run: Callable[[], object]) -> None:
        """Runs both at once, and waits for both."""
        self._iterations = iterations
        self._go.release()
        run()
        self._done.acquire()


def measure(native: NativeProgram, step: StepInputs, iterations: int, helper: Helper) -> dict[str, float]:
    """Milliseconds a step, and the median of the rounds' ratios."""

    def run() -> object:
        return native.step(step)

    def between() -> None:
        run()
        count(iterations)

    ways: dict[str, Callable[[], object]] = {
        "alone": run,
        "between": between,
        "beside": lambda: helper.beside(iterations, run),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(ROUNDS):
        for name in (*ways,) if turn % 2 else (*reversed(ways),):
            start = time.perf_counter()
            for _ in range(STEPS):
                ways[name]()
            times[name].append((time.perf_counter() - start) / STEPS * 1e3)
    ratios = [beside / apart for beside, apart in zip(times["beside"], times["between"], strict=True)]
    return {name: round(statistics.median(values), 2) for name, values in times.items()} | {
        "beside / between": round(statistics.median(ratios), 3)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", default="w8a8")
    parser.add_argument("--cache-dtype", choices=["int8"])
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    _, native = load_program(
        args.model, dtype=args.dtype, cache_dtype=args.cache_dtype, isa=best_isa(), threads=args.threads, max_tokens=64
    )
    start = time.perf_counter()
    count(5_000_000)
    each_us = (time.perf_counter() - start) / 5  # of one iteration
    helper = Helper()
    for sequences, microseconds in POINTS:
        step = make_step(sequences, 1, 191)
        row = {"sequences": sequences, "python us": microseconds}
        print(json.dumps(row | measure(native, step, int(microseconds / each_us), helper)), flush=True)
    native.close()


if __name__ == "__main__":
    main()
