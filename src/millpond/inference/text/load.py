"""Everything about text that a model brings: tokenizer, chat template, the ids that end a sequence.

The gateway calls this without ever loading torch; the engine calls it for stop ids and grammars. Opening a GGUF file
here maps it and reads its metadata alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import tokenizers

from millpond.api.request import SamplingParams
from millpond.base.errors import CheckpointError
from millpond.inference.text import gguf_tokenizer
from millpond.inference.text.chat_template import ChatTemplate
from millpond.inference.text.hf_files import as_token_ids, read_chat_templates, read_special_tokens, read_tokenizer
from millpond.inference.text.tokenizer import Tokenizer
from millpond.inference.weights.gguf_config import make_config
from millpond.inference.weights.gguf_file import GgufFile
from millpond.inference.weights.hf_names import text_config
from millpond.inference.weights.json_file import read_json_object, read_text
from millpond.inference.weights.model_path import gguf_path

# What a generation_config.json may set, as vLLM reads it too, and its range.
_SAMPLED = {
    "temperature": (0.0, 100.0),
    "top_k": (0, 1 << 20),
    "top_p": (1e-6, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (1e-6, 100.0),
}


@dataclass(frozen=True, slots=True)
class TextModel:
    """What turns a model's tokens into text and chats into tokens.

    Attributes:
        tokenizer: Knows the end-of-sequence ids as well.
        chat_template: None for a model that came without one.
        eos_token_ids: Every token that ends a sequence, the main one first.
        bos_token_id: The token a sequence starts with, if the model has one.
        model_type: The family, in Hugging Face's words.
        sampling: What to sample with where a request does not say: the model's generation_config.json over ours.
    """

    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    model_type: str
    sampling: SamplingParams = field(default_factory=SamplingParams)


@dataclass(frozen=True, slots=True)
class _Parts:
    raw: tokenizers.Tokenizer
    special_tokens: dict[str, str]
    templates: dict[str, str]
    eos_token_ids: list[int]
    bos_token_id: int | None
    model_type: str
    generation: Mapping[str, object]


def load_text(path: str, tokenizer_override: str | None = None, template_override: str | None = None) -> TextModel:
    """Loads the text side of a model: a Hugging Face directory or a GGUF file.

    Args:
        path: The model.
        tokenizer_override: A tokenizer.json, or a directory with one, to use in place of the model's.
        template_override: A file with a Jinja chat template to use in place of the model's.

    Raises:
        CheckpointError: A file is missing or malformed.
    """
    override = None if tokenizer_override is None else Path(tokenizer_override)
    file = gguf_path(path)
    parts = _from_directory(Path(path), override) if file is None else _from_gguf(file, override)
    templates: Mapping[str, str] = parts.templates
    if template_override is not None:
        templates = {"default": _read_template(Path(template_override))}
    eos_token_ids = tuple(dict.fromkeys(parts.eos_token_ids))
    return TextModel(
        tokenizer=Tokenizer(parts.raw, eos_token_ids=eos_token_ids, bos_token_id=parts.bos_token_id),
        chat_template=ChatTemplate(templates, parts.special_tokens) if templates else None,
        eos_token_ids=eos_token_ids,
        bos_token_id=parts.bos_token_id,
        model_type=parts.model_type,
        sampling=_sampling(parts.generation),
    )


def load_tokenizer(path: str, tokenizer_override: str | None = None) -> Tokenizer:
    """Loads a model's tokenizer alone; see `load_text`."""
    return load_text(path, tokenizer_override).tokenizer


def _from_directory(directory: Path, override: Path | None) -> _Parts:
    config = text_config(read_json_object(directory / "config.json") or {})
    generation = read_json_object(directory / "generation_config.json") or {}
    raw = read_tokenizer(directory if override is None else override)
    tokens = read_special_tokens(directory)
    if override is not None and override.is_dir():
        tokens |= read_special_tokens(override)
    eos = [*as_token_ids(generation.get("eos_token_id")), *as_token_ids(config.get("eos_token_id"))]
    named_eos, named_bos = _id_of(raw, tokens, "eos_token"), _id_of(raw, tokens, "bos_token")
    bos = [named_bos] if named_bos is not None else as_token_ids(config.get("bos_token_id"))
    return _Parts(
        raw=raw,
        special_tokens=tokens,
        templates=read_chat_templates(directory),
        eos_token_ids=[*eos, *([] if named_eos is None else [named_eos])],
        bos_token_id=bos[0] if bos else None,
        model_type=str(config.get("model_type", "")),
        generation=generation,
    )


def _from_gguf(path: Path, override: Path | None) -> _Parts:
    file = GgufFile(str(path))
    try:
        return _Parts(
            raw=gguf_tokenizer.build_tokenizer(file) if override is None else read_tokenizer(override),
            special_tokens=gguf_tokenizer.special_tokens(file),
            templates=gguf_tokenizer.chat_templates(file),
            eos_token_ids=gguf_tokenizer.end_token_ids(file),
            bos_token_id=file.token_id("tokenizer.ggml.bos_token_id"),
            model_type=str(make_config(file)["model_type"]),
            generation={},
        )
    finally:
        file.close()


def _sampling(generation: Mapping[str, object]) -> SamplingParams:
    """The generation config's sampling numbers; what is missing or out of range is left at our default."""
    given = {name: generation[name] for name, bounds in _SAMPLED.items() if _is_between(generation.get(name), *bounds)}
    return msgspec.structs.replace(SamplingParams(), **given)


def _is_between(value: object, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _id_of(raw: tokenizers.Tokenizer, tokens: Mapping[str, str], role: str) -> int | None:
    return raw.token_to_id(tokens[role]) if role in tokens else None


def _read_template(path: Path) -> str:
    text = read_text(path)
    if text is None:
        raise CheckpointError(f"{path}: there is no such chat template.", fix="Check --model.chat_template.")
    return text
