"""The command line and the output of every peer script: what bench/engine/cases.py describes, with nothing but Python.

A script makes a `Generate` and calls `run`. It is started as a file, in the environment of its engine, which need not
have Millpond.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# Completes prompts of token ids with exactly so many tokens each, all at once; returns seconds from its start to the
# first token (None when the engine does not say, which costs the script a second call) and to the end.
Generate = Callable[[list[list[int]], int], tuple[float | None, float]]


@dataclass(frozen=True)
class Case:
    """As in cases.py."""

    name: str
    prompt: int
    output: int
    streams: int


def make_parser(about: str | None) -> argparse.ArgumentParser:
    """The arguments every script takes."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--case", default="case")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--output", type=int, default=128)
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--cases", help="NAME:PROMPT:OUTPUT:STREAMS, joined by commas, instead of the four above")
    parser.add_argument("--repeats", type=int, default=3)
    return parser


def asked_cases(args: argparse.Namespace) -> list[Case]:
    """The cases to measure."""
    if not args.cases:
        return [Case(args.case, args.prompt, args.output, args.streams)]
    parts = [text.rsplit(":", 3) for text in args.cases.split(",")]
    return [Case(name, int(prompt), int(output), int(streams)) for name, prompt, output, streams in parts]


def make_prompts(case: Case, vocabulary: int) -> list[list[int]]:
    """Random ordinary tokens; another call gives others, so that no cache of prefixes is of use."""
    chance = random.SystemRandom()
    top = max(200, vocabulary - 100)
    return [[chance.randrange(100, top) for _ in range(case.prompt)] for _ in range(case.streams)]


def tokens_per_second(case: Case, generate: Generate, vocabulary: int) -> float:
    """One repetition."""
    first, total = generate(make_prompts(case, vocabulary), case.output)
    if case.output == 1:
        return case.streams * case.prompt / total
    if case.streams > 1:
        return case.streams * case.output / total
    if first is None:
        _, first = generate(make_prompts(case, vocabulary), 1)
    return (case.output - 1) / (total - first)


def run(args: argparse.Namespace, generate: Generate, vocabulary: int) -> None:
    """Warms up, measures every case and prints the lines."""
    for case in asked_cases(args):
        generate(make_prompts(case, vocabulary), min(case.output, 4))
        repeats = args.repeats if case.streams == 1 else max(1, args.repeats - 1)
        for _ in range(repeats):
            emit(case, tokens_per_second(case, generate, vocabulary))


def emit(case: Case, rate: float) -> None:
    """Prints one line."""
    print(json.dumps({"case": case.name, "tokens_per_second": round(rate, 3)}), flush=True)


def timed(call: Callable[[], Sequence[int]], expected: int) -> float:
    """Seconds of a call that returns how many tokens each stream got, which must be what was asked for."""
    start = time.perf_counter()
    counts = call()
    seconds = time.perf_counter() - start
    if any(count != expected for count in counts):
        raise SystemExit(json.dumps({"error": f"asked for {expected} tokens a stream and got {list(counts)[:8]}"}))
    return seconds
