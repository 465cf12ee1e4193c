"""What a model is, from its headers alone: for people who ask before they load.

Reads no weights and no torch. Called by the command line and by tests.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from millpond.inference.weights.gguf_checkpoint import GgufCheckpoint
from millpond.inference.weights.json_file import read_json_object
from millpond.inference.weights.opening import open_checkpoint

_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "seq_length")


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """A model in one line each.

    Attributes:
        family: Hugging Face's `model_type`.
        num_parameters: Numbers in all tensors, as the file stores them.
        bytes_by_dtype: Bytes of the tensors by stored type, largest first.
        context_length: The longest sequence it was made for; None when the config does not say.
        tokenizer: "tokenizer.json", or GGUF's kind and pre-tokenizer; None when there is none.
        has_chat_template: Whether it brings one.
    """

    path: str
    format: str
    family: str
    num_parameters: int
    num_tensors: int
    size_bytes: int
    bytes_by_dtype: dict[str, int]
    context_length: int | None
    vocab_size: int | None
    tokenizer: str | None
    has_chat_template: bool


def inspect_model(path: str) -> ModelSummary:
    """Reads a model's headers.

    Raises:
        CheckpointError: It is no model, or it is malformed.
    """
    checkpoint = open_checkpoint(path)
    try:
        stored = Counter[str]()
        for info in checkpoint.tensors.values():
            stored[info.dtype] += info.size_bytes
        if isinstance(checkpoint, GgufCheckpoint):
            tokenizer, has_template = _gguf_text(checkpoint)
        else:
            tokenizer, has_template = _directory_text(Path(path))
        config = checkpoint.config
        return ModelSummary(
            path=path,
            format=checkpoint.format,
            family=str(config.get("model_type", "")),
            num_parameters=sum(info.num_elements for info in checkpoint.tensors.values()),
            num_tensors=len(checkpoint.tensors),
            size_bytes=stored.total(),
            bytes_by_dtype=dict(stored.most_common()),
            context_length=next((config[key] for key in _CONTEXT_KEYS if key in config), None),
            vocab_size=config.get("vocab_size"),
            tokenizer=tokenizer,
            has_chat_template=has_template,
        )
    finally:
        checkpoint.close()


def _gguf_text(checkpoint: GgufCheckpoint) -> tuple[str | None, bool]:
    kind, pre = checkpoint.metadata.get("tokenizer.ggml.model"), checkpoint.metadata.get("tokenizer.ggml.pre")
    tokenizer = None if kind is None else f"{kind} ({pre})" if pre else str(kind)
    return tokenizer, "tokenizer.chat_template" in checkpoint.metadata


def _directory_text(directory: Path) -> tuple[str | None, bool]:
    tokenizer = "tokenizer.json" if (directory / "tokenizer.json").exists() else None
    config = read_json_object(directory / "tokenizer_config.json") or {}
    has_template = bool(config.get("chat_template")) or (directory / "chat_template.jinja").exists()
    return tokenizer, has_template
