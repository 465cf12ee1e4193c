"""Hugging Face `transformers`, `generate` with its own cache, one batch of equal lengths, bfloat16 or float32.

    VENV/bin/python bench/engine/peers/transformers_eager.py --model DIR --prompt 128 --output 128 --streams 16

Needs `pip install torch transformers`. A .gguf file is read as transformers reads it, widened to the precision.
"""

from __future__ import annotations

from pathlib import Path

import torch
from contract import make_parser, run, timed
from transformers import AutoModelForCausalLM


def main() -> None:
    args = make_parser(__doc__).parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    path, extra = Path(args.model), {}
    if path.suffix == ".gguf":
        path, extra = path.parent, {"gguf_file": path.name}
    precision = {"bfloat16": torch.bfloat16, "float32": torch.float32}.get(args.precision, torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(str(path), dtype=precision, **extra).eval()
    model.generation_config.eos_token_id = None

    def generate(prompts: list[list[int]], output: int) -> tuple[float | None, float]:
        inputs = torch.tensor(prompts)

        def call() -> list[int]:
            with torch.inference_mode():
                mask = torch.ones_like(inputs)
                made = model.generate(
                    inputs, attention_mask=mask, do_sample=False, max_new_tokens=output, pad_token_id=0
                )
            return [made.shape[1] - inputs.shape[1]] * len(prompts)

        return None, timed(call, output)

    run(args, generate, model.config.vocab_size)


if __name__ == "__main__":
    main()
