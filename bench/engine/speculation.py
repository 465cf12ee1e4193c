"""Speculation on against off: tokens a second over prompts that repeat and prompts that do not, and batch sizes.

    python -m bench.engine.speculation --model PATH [--draft-model PATH [--draft-dtype int4]]
        [--dtype bfloat16] [--batches 1 4 16 64] [--json FILE]

Two engines in one process take turns, off and on, so that a machine that changes changes for both; the medians of
`--rounds` turns and their ratio are printed. The prompts: `repeating` (a table the answer has to copy), `prose` (text
that does not repeat) and `noise` (random tokens, sampled at a high temperature: nothing can be guessed). Bar: the ratio
is nowhere below 0.98, and a greedy answer is the same both ways.
"""

from __future__ import annotations

import argparse
import json
import pydoc_data.topics
import random
import statistics
import time
from pathlib import Path
from typing import Any

from millpond import LLM, SamplingParams
from millpond.base.machine import read_machine

PROSE = "\n\n".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))


def make_prompts(llm: LLM, kind: str, count: int, length: int) -> list[list[int]]:
    """Prompts of `length` tokens; no two begin alike, so that no turn profits from the prefix cache of another."""
    chance = random.Random(count)
    encode = llm.text.tokenizer.encode
    prompts = []
    for index in range(count):
        if kind == "noise":
            prompts.append([chance.randrange(100, llm.info.vocab_size - 100) for _ in range(length)])
            continue
        start = 4001 * index % (len(PROSE) - 8 * length)
        text = PROSE[start : start + 8 * length]
        if kind == "repeating":
            row = f"| {index} | {text[:30].strip()!r} | ok |\n"
            text = row * (8 * length // len(row))
        prompts.append(encode(text)[:length])
    return prompts


def run_turn(llm: LLM, prompts: list[list[int]], params: SamplingParams) -> dict[str, Any]:
    """One turn: tokens a second of all of it, and what was guessed."""
    before = llm.stats
    begin = time.perf_counter()
    results = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - begin
    after = llm.stats
    tokens = [list(result.outputs[0].token_ids) for result in results]
    return {
        "tokens": tokens,
        "tokens_per_second": sum(map(len, tokens)) / seconds,
        "proposed": after.draft_tokens_total - before.draft_tokens_total,
        "accepted": after.accepted_draft_tokens_total - before.accepted_draft_tokens_total,
        "steps": after.steps_total - before.steps_total,
    }


def compare(off: LLM, on: LLM, kind: str, batch: int, args: argparse.Namespace) -> dict[str, Any]:
    """Alternating turns of one case."""
    prompts = make_prompts(off, kind, batch, args.prompt_tokens)
    greedy = kind != "noise"
    params = SamplingParams(temperature=0.0 if greedy else 1.5, seed=1, max_tokens=args.output_tokens, ignore_eos=True)
    turns: dict[str, list[dict[str, Any]]] = {"off": [], "on": []}
    for index in range(args.rounds + 1):  # the first warms up
        order = [("off", off), ("on", on)]
        for name, llm in order if index % 2 else reversed(order):
            turns[name].append(run_turn(llm, prompts, params))
    speeds = {name: statistics.median(turn["tokens_per_second"] for turn in turns[name][1:]) for name in turns}
    last = turns["on"][-1]
    return {
        "prompts": kind,
        "batch": batch,
        "off_tokens_per_second": round(speeds["off"], 1),
        "on_tokens_per_second": round(speeds["on"], 1),
        "ratio": round(speeds["on"] / speeds["off"], 3),
        "proposed": last["proposed"],
        "accepted": last["accepted"],
        "steps_off": turns["off"][-1]["steps"],
        "steps_on": last["steps"],
        "same_tokens": last["tokens"] == turns["off"][-1]["tokens"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--draft-model")
    parser.add_argument("--draft-dtype")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--prompts", nargs="+", default=["repeating", "prose", "noise"])
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--output-tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    settings: dict[str, Any] = {"dtype": args.dtype, "prefix": False}
    if args.threads:
        settings["threads"] = args.threads
    speculation: dict[str, Any] = {"draft_model": args.draft_model} if args.draft_model else {"mode": "ngram"}
    if args.draft_dtype:
        speculation["draft_dtype"] = args.draft_dtype
    rows = []
    with LLM(args.model, **settings, speculation_mode="off") as off, LLM(args.model, **settings, **speculation) as on:
        for batch in args.batches:
            for kind in args.prompts:
                rows.append(compare(off, on, kind, batch, args))
                print(json.dumps(rows[-1]), flush=True)
        info = {"model": on.info.model, "dtype": on.info.dtype, "isa": on.info.isa, "threads": on.info.threads}
    if args.json:
        machine = read_machine()
        facts = {"cores": machine.usable_cores, "memory_available": machine.memory_available}
        args.json.write_text(json.dumps({**info, "machine": facts, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
