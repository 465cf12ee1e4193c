"""What a model's path is: a Hugging Face directory, a GGUF file, or something that has to be explained to its owner.

Looks at names and the first bytes alone, so that the gateway may ask without torch. Called by opening.py and by
text/load.py.
"""

from __future__ import annotations

import re
from pathlib import Path

from millpond.base.errors import CheckpointError
from millpond.inference.weights.base import file_error
from millpond.inference.weights.gguf_file import MAGIC

PICKLED_REASON = "pickled weights can run code when they are read, so Millpond never does."
_LATER_PART = re.compile(r"-(?!00001-)\d{5}-of-\d{5}\.gguf$")
_PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}


def gguf_path(path: str) -> Path | None:
    """Returns the GGUF file a model path stands for; None when it is a Hugging Face directory.

    Raises:
        CheckpointError: There is nothing at `path`, or it is neither.
    """
    location = Path(path)
    if location.is_dir():
        if (location / "config.json").exists():
            return None
        files = [file for file in sorted(location.glob("*.gguf")) if not _LATER_PART.search(file.name)]
        if len(files) > 1:
            names = ", ".join(file.name for file in files[:5])
            raise file_error(path, f"it holds {len(files)} GGUF models ({names}).", fix="Pass one of the files.")
        return files[0] if files else None
    if not location.is_file():
        raise CheckpointError(f"{path}: there is no such file or directory.", fix="Check the path.")
    _check_magic(location)
    return location


def _check_magic(file: Path) -> None:
    with file.open("rb") as stream:
        head = stream.read(len(MAGIC))
    if head == MAGIC:
        return
    if file.suffix in _PICKLE_SUFFIXES:
        fix = (
            "Convert the model once, on a machine where you trust it, with transformers' save_pretrained, "
            "and pass the directory it writes."
        )
        raise file_error(str(file), PICKLED_REASON, fix=fix)
    if file.suffix == ".safetensors":
        raise file_error(str(file), "weights alone are no model.", fix="Pass the directory the file is in.")
    raise file_error(str(file), "it is not a GGUF file.", fix="Pass a GGUF file or a Hugging Face model directory.")
