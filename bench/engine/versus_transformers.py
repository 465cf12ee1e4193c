"""Tokens a second against `transformers` eager in bfloat16, both in this process, alternating.

    python -m bench.engine.versus_transformers [--model NAME_OR_PATH] [--rounds 3] [--json FILE]

One stream: 128 greedy tokens after 128 of prompt, prompt included in the time. 16 streams: the same 16 at once (theirs
one batch of equal lengths, which is its best case). Bars: >= 1.5x and >= 5x.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from millpond import LLM, SamplingParams
from millpond.inference.weights.catalog import resolve_model

PROMPT, OUTPUT = 128, 128


def make_prompts(count: int, seed: int) -> list[list[int]]:
    """Random token ids: no two rounds share a prefix."""
    generator = random.Random(seed)
    return [[generator.randrange(100, 40000) for _ in range(PROMPT)] for _ in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(2)
    file = Path(str(resolve_model(args.model)))
    theirs = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.bfloat16).eval()
    params = SamplingParams(temperature=0, max_tokens=OUTPUT, ignore_eos=True)
    rates: dict[str, list[float]] = {}
    with LLM(str(file), dtype=args.dtype) as ours:

        def run_ours(prompts: list[list[int]]) -> None:
            for output in ours.generate(prompts, params, use_tqdm=False):
                assert len(output.outputs[0].token_ids) == OUTPUT

        def run_theirs(prompts: list[list[int]]) -> None:
            inputs = torch.tensor(prompts)
            with torch.inference_mode():
                theirs.generate(
                    inputs,
                    attention_mask=torch.ones_like(inputs),
                    do_sample=False,
                    min_new_tokens=OUTPUT,
                    max_new_tokens=OUTPUT,
                )

        for round_ in range(args.rounds + 1):  # the first warms up
            for streams in (1, 16):
                for name, run in (("ours", run_ours), ("transformers", run_theirs)):
                    prompts = make_prompts(streams, seed=1000 * round_ + streams)
                    start = time.perf_counter()
                    run(prompts)
                    rate = streams * OUTPUT / (time.perf_counter() - start)
                    if round_:
                        rates.setdefault(f"{name} {streams}", []).append(rate)
    result = {key: round(statistics.median(values), 1) for key, values in rates.items()}
    for streams in (1, 16):
        result[f"ratio {streams}"] = round(result[f"ours {streams}"] / result[f"transformers {streams}"], 2)
    print(json.dumps(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
