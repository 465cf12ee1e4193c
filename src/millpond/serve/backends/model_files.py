"""`ModelFiles`: a model's folder on disk for a worker, whether its files are in a repository or came with a request."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path, PurePosixPath

from millpond.serve.servables.backend import ModelFolder
from millpond.serve.servables.errors import ServableError


class ModelFiles:
    """Holds a folder with a model's files; when some came with the load request, a temporary one.

    Args:
        folder: Where the files are.

    Raises:
        ServableError: A file would lie outside the folder, or there are no files at all.
    """

    def __init__(self, folder: ModelFolder) -> None:
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        if not folder.files:
            if folder.path is None:
                raise ServableError("internal", "The model has no files.")
            self.path = folder.path.resolve()
            return
        for name in folder.files:
            parts = PurePosixPath(name)
            if parts.is_absolute() or ".." in parts.parts or not parts.parts:
                raise ServableError("invalid_argument", f"The file name '{name}' leaves the model's folder.")
        self._temporary = tempfile.TemporaryDirectory(prefix="millpond-model-")
        # Under the model's own name, which shows in the lines that errors of its code quote.
        self.path = Path(self._temporary.name).resolve() / "model"
        try:
            if folder.path is not None and folder.path.is_dir():
                shutil.copytree(folder.path, self.path)
            for name, content in folder.files.items():
                target = self.path / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
        except OSError as error:
            self.close()
            raise ServableError("internal", f"The model's files cannot be put together: {error.strerror}.") from error

    def close(self) -> None:
        """Removes what is temporary."""
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None
