"""Tokens a second against `transformers` eager in bfloat16, all in this process, alternating.

    python -m bench.engine.versus_transformers [--model NAME_OR_PATH] [--rounds 3] [--json FILE]

One stream: 128 greedy tokens after 128 of prompt, prompt included in the time. 16 streams: the same 16 at once (theirs
one batch of equal lengths, which is its best case). Prompts are passages of the language reference that CPython ships,
none twice, so no prefix is shared. Ours runs with speculation off, so that both compute every token, and once more as
it comes (speculation "auto"). Bars: >= 1.5x and >= 5x.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from bench.engine.exactness import reference_text
from millpond import LLM, SamplingParams
from millpond.inference.weights.catalog import resolve_model

PROMPT, OUTPUT = 128, 128
STREAMS = (1, 16)


def run_ours(llm: LLM, prompts: list[list[int]]) -> None:
    """All prompts at once, greedy."""
    params = SamplingParams(temperature=0, max_tokens=OUTPUT, ignore_eos=True)
    for output in llm.generate(prompts, params, use_tqdm=False):
        assert len(output.outputs[0].token_ids) == OUTPUT


def run_theirs(model: torch.nn.Module, prompts: list[list[int]]) -> None:
    """The same with transformers."""
    inputs = torch.tensor(prompts)
    with torch.inference_mode():
        model.generate(  # type: ignore[operator]
            inputs,
            attention_mask=torch.ones_like(inputs),
            do_sample=False,
            min_new_tokens=OUTPUT,
            max_new_tokens=OUTPUT,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(2)
    file = Path(str(resolve_model(args.model)))
    theirs = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.bfloat16)
    theirs.eval()  # type: ignore[no-untyped-call]
    rates: dict[str, list[float]] = {}
    with LLM(str(file), dtype=args.dtype, speculation_mode="off") as plain, LLM(str(file), dtype=args.dtype) as auto:
        text = plain.text.tokenizer.encode(reference_text())
        passages = [text[start : start + PROMPT] for start in range(0, len(text) - PROMPT, PROMPT)]
        runs: tuple[tuple[str, Callable[[list[list[int]]], None]], ...] = (
            ("ours", lambda prompts: run_ours(plain, prompts)),
            ("ours, speculation auto", lambda prompts: run_ours(auto, prompts)),
            ("transformers", lambda prompts: run_theirs(theirs, prompts)),
        )
        for round_ in range(args.rounds + 1):  # the first warms up
            for streams in STREAMS:
                prompts = [passages.pop() for _ in range(streams)]
                for name, run in runs:
                    start = time.perf_counter()
                    run(prompts)
                    rate = streams * OUTPUT / (time.perf_counter() - start)
                    if round_:
                        rates.setdefault(f"{name}, {streams}", []).append(rate)
    result = {key: round(statistics.median(values), 1) for key, values in rates.items()}
    for streams in STREAMS:
        for name, _ in runs[:2]:
            ratio = result[f"{name}, {streams}"] / result[f"transformers, {streams}"]
            result[f"{name}, {streams}: ratio"] = round(ratio, 2)
    print(json.dumps(result, indent=2))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
