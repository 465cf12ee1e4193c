"""What the engine adds to its kernels: the time of a step less that of the native program, and what lies between steps.

    python -m bench.engine.step_overhead --model NAME_OR_PATH [--dtype w8a8] [--streams 1 64] [--json FILE]

`LLM` in this process, greedy, speculation off: passages of 128 tokens, 128 more each. The executor's call (copying
inputs, all kernels, waiting for threads) counts as the kernels' time; scheduling, building inputs, sampling and making
text are the engine's. Medians of steps; the last share is of the whole run. Bar: at most 8 %.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.engine.exactness import reference_text
from millpond import LLM, SamplingParams
from millpond.inference.engine.core import EngineCore

PROMPT, OUTPUT = 128, 128


def time_calls(owner: object, name: str) -> list[float]:
    """Replaces a method by one that notes its seconds; returns the list it writes to."""
    seconds: list[float] = []
    method: Callable[..., Any] = getattr(owner, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = method(*args, **kwargs)
        seconds.append(time.perf_counter() - start)
        return result

    setattr(owner, name, timed)
    return seconds


def measure(llm: LLM, streams: int, passages: list[list[int]]) -> dict[str, float]:
    """One run of `streams` sequences at once; times in microseconds."""
    core = next(value for value in vars(llm).values() if isinstance(value, EngineCore))
    steps, kernels = time_calls(core, "step"), time_calls(core._executor, "execute")
    params = SamplingParams(temperature=0, max_tokens=OUTPUT, ignore_eos=True)
    llm.generate([passages.pop() for _ in range(streams)], params, use_tqdm=False)
    steps.clear()
    kernels.clear()
    start = time.perf_counter()
    llm.generate([passages.pop() for _ in range(streams)], params, use_tqdm=False)
    seconds = time.perf_counter() - start
    step, kernel = statistics.median(steps), statistics.median(kernels)
    return {
        "streams": streams,
        "step us": round(step * 1e6),
        "kernels us": round(kernel * 1e6),
        "engine %": round(100 * (1 - kernel / step), 1),
        "whole run without kernels %": round(100 * (1 - sum(kernels) / seconds), 1),
        "tokens/s": round(streams * OUTPUT / seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", default="w8a8")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    for streams in args.streams:
        with LLM(args.model, dtype=args.dtype, speculation_mode="off") as llm:
            text = llm.text.tokenizer.encode(reference_text())
            passages = [text[start : start + PROMPT] for start in range(0, len(text) - PROMPT, PROMPT)]
            rows.append(measure(llm, streams, passages))
        print(json.dumps(rows[-1]), flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
