"""llama.cpp through its own `llama-bench` (one stream) and `llama-batched-bench` (several).

    python bench/engine/peers/llama_bench.py --model FILE.gguf --bin BUILD/bin --prompt 128 --output 128 --streams 1

Needs nothing but the two programs. The precision is the file's. `--flash` is `auto` as measured best: on for prompts,
off for generation. Decode runs at a context of the prompt's length (`-d`), as the other engines do.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from contract import Case, asked_cases, emit, make_parser


def rows_of(command: list[str]) -> Iterator[dict[str, Any]]:
    """The JSON lines a program prints."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(json.dumps({"error": f"{command[0]} exited with {done.returncode}: {done.stderr[-400:]}"}))
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            yield json.loads(line)


def measure(args: argparse.Namespace, case: Case) -> Iterator[float]:
    """The rates of a case, one a repetition."""
    flash = args.flash if args.flash != "auto" else ("1" if case.output == 1 else "0")
    common = ["-m", args.model, "-b", "2048", "-ub", args.ubatch, "-fa", flash]
    if args.threads:
        common += ["-t", str(args.threads)]
    if case.streams == 1:
        wanted = ["-p", str(case.prompt), "-n", "0"] if case.output == 1 else ["-p", "0", "-n", str(case.output - 1)]
        depth = [] if case.output == 1 else ["-d", str(case.prompt)]
        command = [str(args.bin / "llama-bench"), *common, *wanted, *depth, "-r", str(args.repeats), "-o", "jsonl"]
        for row in rows_of(command):
            yield from row["samples_ts"]
        return
    room = case.streams * (case.prompt + case.output) + 64
    shape = ["-npp", str(case.prompt), "-ntg", str(case.output), "-npl", str(case.streams), "-c", str(room)]
    for _ in range(max(1, args.repeats - 1)):
        for row in rows_of([str(args.bin / "llama-batched-bench"), *common, *shape, "--output-format", "jsonl"]):
            yield case.streams * case.output / row["t"]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--bin", type=Path, required=True)
    parser.add_argument("--flash", default="auto", choices=("auto", "0", "1"))
    parser.add_argument("--ubatch", default="2048")
    args = parser.parse_args()
    for case in asked_cases(args):
        for rate in measure(args, case):
            emit(case, rate)


if __name__ == "__main__":
    main()
