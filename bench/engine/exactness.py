"""How exact the engine is on real checkpoints: logits and tokens against `transformers`, perplexity against float32.

    python -m bench.engine.exactness [--models smollm2-135m gemma3-270m] [--json FILE]

Needs the `dev` extra. The models come from the catalogue (`millpond models pull NAME`). The text is the language
reference that CPython ships as `pydoc_data.topics`. Bars: logits in float32 within 1e-3 of transformers with equal
argmax at every position; 64 greedy tokens of 20 prompts identical (SmolLM2); perplexity over 8,192 tokens <= 1.01x
(bf16), <= 1.02x (int8), <= 1.08x (int4) and <= 1.01x (int8 KV cache) of our own float32.
"""

from __future__ import annotations

import argparse
import json
import math
import pydoc_data.topics
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from bench.engine.step_profile import BLOCK
from millpond import LLM, SamplingParams
from millpond.inference.models import build_spec, make_program
from millpond.inference.ops.inputs import StepInputs
from millpond.inference.ops.native import NativeProgram, best_isa
from millpond.inference.text import load_text
from millpond.inference.weights import open_checkpoint
from millpond.inference.weights.catalog import resolve_model
from millpond.inference.weights.gguf_int4 import stored_blocks

WINDOW = 1024  # tokens a perplexity window
NUM_WINDOWS = 8


def reference_text() -> str:
    """English prose and code that every CPython carries."""
    topics = pydoc_data.topics.topics
    return "\n\n".join(topics[name] for name in sorted(topics))


def full_step(tokens: list[int]) -> StepInputs:
    """One prefill of a whole window with every row's logits."""
    length = len(tokens)
    blocks = -(-length // BLOCK)
    places = torch.arange(length, dtype=torch.int32).numpy()
    return StepInputs(
        token_ids=torch.tensor(tokens, dtype=torch.int32).numpy(),
        positions=places,
        slots=places.copy(),
        query_start=torch.tensor([0, length], dtype=torch.int32).numpy(),
        context_len=torch.tensor([length], dtype=torch.int32).numpy(),
        block_tables=torch.arange(blocks, dtype=torch.int32)[None].numpy(),
        logit_rows=places.copy(),
        block_size=BLOCK,
    )


def open_native(path: str, dtype: str, cache_dtype: str | None = None) -> NativeProgram:
    """The model's native program alone, without an engine."""
    checkpoint = open_checkpoint(path)
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    spec = build_spec(checkpoint.config)
    program = make_program(spec, checkpoint.read, shapes, WINDOW, stored_blocks(checkpoint))
    return NativeProgram(
        program,
        dtype=dtype,
        cache_dtype=cache_dtype,
        isa=best_isa(),
        num_threads=2,
        num_blocks=WINDOW // BLOCK,
        block_size=BLOCK,
        max_tokens=WINDOW,
        max_logit_rows=WINDOW,
    )


def windows_of(path: str) -> list[list[int]]:
    """The text cut into windows of tokens."""
    ids = load_text(path).tokenizer.encode(reference_text())
    return [ids[i * WINDOW : (i + 1) * WINDOW] for i in range(NUM_WINDOWS)]


def compare_logits(path: str, oracle: PreTrainedModel) -> dict[str, Any]:
    """Largest difference and share of equal argmax over two windows, float32."""
    native = open_native(path, "float32")
    worst, equal, total = 0.0, 0, 0
    for tokens in windows_of(path)[:2]:
        with torch.no_grad():
            want = oracle(torch.tensor([tokens])).logits[0]
        got = native.run(full_step(tokens))[0]
        worst = max(worst, float((got - want).abs().max()))
        equal += int((got.argmax(-1) == want.argmax(-1)).sum())
        total += len(tokens)
    native.close()
    return {"max_abs_difference": worst, "argmax_equal": equal, "positions": total}


def perplexity(path: str, dtype: str, cache_dtype: str | None = None) -> float:
    """exp of the mean negative log-likelihood over all windows."""
    native = open_native(path, dtype, cache_dtype)
    loss, count = 0.0, 0
    for tokens in windows_of(path):
        logits = native.run(full_step(tokens))[0][:-1]
        target = torch.tensor(tokens[1:])
        loss += float(torch.nn.functional.cross_entropy(logits, target, reduction="sum"))
        count += len(target)
    native.close()
    return math.exp(loss / count)


def compare_greedy(path: str, oracle: PreTrainedModel) -> dict[str, Any]:
    """64 greedy tokens of 20 prompts, ours batched, theirs one by one."""
    ids = load_text(path).tokenizer.encode(reference_text())
    prompts = [ids[i * 997 : i * 997 + 20 + 7 * i] for i in range(20)]
    with LLM(path, dtype="float32") as llm:
        params = SamplingParams(temperature=0, max_tokens=64, ignore_eos=True)
        ours = [o.outputs[0].token_ids for o in llm.generate(prompts, params, use_tqdm=False)]
    identical = 0
    for prompt, got in zip(prompts, ours, strict=True):
        inputs = torch.tensor([prompt])
        with torch.no_grad():
            out = oracle.generate(  # type: ignore[operator]
                inputs, attention_mask=torch.ones_like(inputs), do_sample=False, min_new_tokens=64, max_new_tokens=64
            )
        identical += list(got) == out[0, len(prompt) :].tolist()
    return {"prompts": len(prompts), "identical": identical}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["smollm2-135m"])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(2)
    results = {}
    for name in args.models:
        path = str(resolve_model(name))
        file = Path(path)
        oracle = AutoModelForCausalLM.from_pretrained(
            str(file.parent), gguf_file=file.name, dtype=torch.float32, attn_implementation="eager"
        )
        oracle.eval()  # type: ignore[no-untyped-call]
        row: dict[str, Any] = {"logits": compare_logits(path, oracle)}
        if name.startswith("smollm2"):
            row["greedy"] = compare_greedy(path, oracle)
        base = perplexity(path, "float32")
        row["perplexity"] = {"float32": base}
        for dtype in ("bfloat16", "int8", "w8a8", "int4"):
            row["perplexity"][f"{dtype} / float32"] = perplexity(path, dtype) / base
        for dtype in ("float32", "bfloat16", "w8a8"):
            row["perplexity"][f"{dtype}, int8 KV / float32"] = perplexity(path, dtype, "int8") / base
        results[name] = row
        print(name, json.dumps(row), flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
