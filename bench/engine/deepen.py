"""A deeper model that says what a smaller one says: what a draft model saves, where no larger relative is at hand.

    python -m bench.engine.deepen SOURCE DIRECTORY [--times 4]

Copies a checkpoint of the Llama family (a directory or a GGUF file) into a Hugging Face directory in bfloat16 with its
layers `--times` as many. The further ones are copies whose last products (of attention, of the feed-forward network)
are zero: they cost what every layer costs and add nothing. So the source, as a draft model, guesses as well as a draft
model can; one of another training guesses worse.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from millpond.inference.text import load_text
from millpond.inference.weights import Checkpoint, open_checkpoint

ADDS = ("self_attn.o_proj.weight", "mlp.down_proj.weight")
LAYERS = "model.layers."


def deepen(checkpoint: Checkpoint, times: int) -> dict[str, torch.Tensor]:
    """All parameters of the deeper model, by their Hugging Face names."""
    num_layers = checkpoint.config["num_hidden_layers"]
    tensors = {}
    for name in checkpoint.tensors:
        values = checkpoint.read(name).to(torch.bfloat16)
        tensors[name] = values
        if not name.startswith(LAYERS):
            continue
        index, rest = name.removeprefix(LAYERS).split(".", 1)
        for turn in range(1, times):
            copy = torch.zeros_like(values) if rest in ADDS else values.clone()
            tensors[f"{LAYERS}{int(index) + turn * num_layers}.{rest}"] = copy
    return tensors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--times", type=int, default=4)
    args = parser.parse_args()
    if args.times < 1:
        parser.error("--times must be at least 1")
    checkpoint = open_checkpoint(args.source)
    if checkpoint.config.get("model_type") != "llama":
        parser.error(f"{args.source} is of the family {checkpoint.config.get('model_type')}, not llama.")
    args.directory.mkdir(parents=True, exist_ok=True)
    config = checkpoint.config | {"num_hidden_layers": checkpoint.config["num_hidden_layers"] * args.times}
    (args.directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    load_text(args.source).tokenizer.raw.save(str(args.directory / "tokenizer.json"))
    save_file(deepen(checkpoint, args.times), args.directory / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
