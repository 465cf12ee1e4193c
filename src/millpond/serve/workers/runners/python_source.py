"""Importing a model's Python file in the worker, and telling what went wrong in it without this machine's paths."""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from types import ModuleType

from millpond.serve.servables.errors import ServableError


class PythonSource:
    """A model's file and its folder.

    Args:
        folder: The model's folder.
        version: Which of its versions.
        file: The file's name in the version's folder.
        name: The model's, for errors.
    """

    def __init__(self, folder: Path, version: int, file: str, name: str) -> None:
        self.folder = folder
        self.version_folder = folder / str(version)
        self._version = version
        self._file = file
        self._name = name

    def load(self) -> ModuleType:
        """Imports the file as `<version>.<name>`, so that it can import files beside it, relatively or not.

        Raises:
            ServableError: There is no such file, or importing it failed.
        """
        if not (self.version_folder / self._file).is_file():
            raise ServableError("internal", f"There is no file '{self._version}/{self._file}' in model '{self._name}'.")
        for path in (self.version_folder, self.folder):
            sys.path.insert(0, str(path))
        try:
            return importlib.import_module(f"{self._version}.{Path(self._file).stem}")
        except (Exception, SystemExit) as error:
            raise ServableError("internal", self.describe(error)) from error

    def describe(self, error: BaseException) -> str:
        """Returns an exception with where it came from, innermost first, as Triton's clients know it."""
        text = f"{type(error).__name__}: {error}"
        frames = [
            f"  {self._shown(frame.filename)}({frame.lineno}): {frame.name}"
            for frame in reversed(traceback.extract_tb(error.__traceback__))
            if self._is_of_interest(frame.filename)
        ]
        return text if not frames else "\n".join([text, "", "At:", *frames, ""])

    def _is_of_interest(self, filename: str) -> bool:
        return not filename.startswith("<frozen") and not Path(filename).is_relative_to(Path(__file__).parents[3])

    def _shown(self, filename: str) -> str:
        path = Path(filename)
        if path.is_relative_to(self.folder):
            return f"{self._name}/{path.relative_to(self.folder)}"
        return path.name
