"""Tokenizer and chat template of a Hugging Face directory.

Reads tokenizer.json, tokenizer_config.json, special_tokens_map.json and chat_template.jinja. No torch, and nothing of
transformers: what a directory's Python files would do is never run. Called by load.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from millpond.base.errors import CheckpointError
from millpond.inference.weights.base import file_error
from millpond.inference.weights.json_file import read_json_object, read_text

MAX_TOKENIZER_BYTES = 256 << 20
_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_OTHER_TOKENIZERS = ("tokenizer.model", "vocab.json", "merges.txt", "tekken.json", "tiktoken.model")


def read_tokenizer(path: Path) -> tokenizers.Tokenizer:
    """Reads a tokenizer.json, given as a file or by its directory.

    Raises:
        CheckpointError: There is none, or it cannot be understood.
    """
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise _missing(path)
    if file.stat().st_size > MAX_TOKENIZER_BYTES:
        raise file_error(str(file), f"larger than {MAX_TOKENIZER_BYTES} bytes; this is no tokenizer.")
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a malformed file can make the library panic, which is no Exception
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise file_error(str(file), f"not a tokenizer.json: {reason}.", fix="Fetch the file again.") from error


def read_special_tokens(directory: Path) -> dict[str, str]:
    """The special tokens by role (`bos_token`, ...), as far as the directory names them."""
    config = read_json_object(directory / "tokenizer_config.json") or {}
    older = read_json_object(directory / "special_tokens_map.json") or {}
    tokens = {role: _content(config.get(role)) or _content(older.get(role)) for role in _ROLES}
    return {role: token for role, token in tokens.items() if token}


def read_chat_templates(directory: Path) -> dict[str, str]:
    """The chat templates by name; the nameless one is "default".

    Raises:
        CheckpointError: The template entry is neither a string nor a list of named ones.
    """
    templates: dict[str, str] = {}
    config = read_json_object(directory / "tokenizer_config.json") or {}
    entry = config.get("chat_template")
    if entry is None:
        entry = (read_json_object(directory / "chat_template.json") or {}).get("chat_template")
    if isinstance(entry, str):
        templates["default"] = entry
    elif isinstance(entry, list):
        templates.update(_named_template(directory, item) for item in entry)
    elif entry is not None:
        raise file_error(str(directory / "tokenizer_config.json"), "its chat_template is neither a text nor a list.")
    for file in sorted((directory / "additional_chat_templates").glob("*.jinja")):
        templates[file.stem] = read_text(file) or ""
    own_file = read_text(directory / "chat_template.jinja")
    if own_file is not None:
        templates["default"] = own_file
    return templates


def as_token_ids(value: object) -> list[int]:
    """An `eos_token_id` of a config: an id, a list of them, or none."""
    values = value if isinstance(value, list) else [value]
    return [item for item in values if isinstance(item, int) and not isinstance(item, bool) and item >= 0]


def _named_template(directory: Path, item: Any) -> tuple[str, str]:
    if isinstance(item, Mapping) and isinstance(item.get("name"), str) and isinstance(item.get("template"), str):
        return item["name"], item["template"]
    file = str(directory / "tokenizer_config.json")
    raise file_error(file, "an entry of its chat_template has no name or no template.")


def _content(token: object) -> str | None:
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _missing(path: Path) -> CheckpointError:
    if not path.is_dir():
        return file_error(str(path), "there is no such tokenizer.", fix="Pass a tokenizer.json or its directory.")
    others = [name for name in _OTHER_TOKENIZERS if (path / name).exists()]
    reason = f"it has {', '.join(others)} but no tokenizer.json." if others else "it has no tokenizer.json."
    fix = (
        f"Write one with transformers: AutoTokenizer.from_pretrained('{path}').save_pretrained('{path}')."
        if others
        else "Fetch it with the model, or give one with --model.tokenizer."
    )
    return file_error(str(path), reason, fix=fix)
