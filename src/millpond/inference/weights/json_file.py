"""JSON objects that come with a model, read with bounds.

Called by the readers of Hugging Face directories. A file that is missing where it may be, is None; every other way
of being wrong is a `CheckpointError` that names the file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from millpond.inference.weights.base import file_error

MAX_JSON_BYTES = 16 << 20


def read_json_object(path: Path, *, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any] | None:
    """Reads a JSON object; None when there is no such file.

    Raises:
        CheckpointError: The file is too large, is no JSON, or its top is no object.
    """
    text = read_text(path, max_bytes=max_bytes)
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise file_error(str(path), f"not valid JSON: {error}", fix="Fetch the file again.") from error
    if not isinstance(value, dict):
        raise file_error(str(path), f"holds a JSON {type(value).__name__}, not an object.")
    return value


def read_text(path: Path, *, max_bytes: int = MAX_JSON_BYTES) -> str | None:
    """Reads a UTF-8 file; None when there is no such file.

    Raises:
        CheckpointError: The file is too large, cannot be read or is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise file_error(str(path), error.strerror or str(error)) from error
    if len(data) > max_bytes:
        raise file_error(str(path), f"larger than {max_bytes} bytes.", fix="This is no model file of the usual kind.")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise file_error(str(path), f"not UTF-8: {error.reason} at byte {error.start}.") from error
