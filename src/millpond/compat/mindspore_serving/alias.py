"""Answers `import mindspore_serving` with this package, when asked to.

Used by `python -m millpond.compat.mindspore_serving script.py` and in worker processes, where a servable's file may
name either. A module imported under both names is one module: the registered methods are the same.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

ALIAS = "mindspore_serving"
_OURS = __name__.rpartition(".")[0]


class AliasFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds `mindspore_serving` and what is below it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Returns a spec for our names only."""
        if fullname != ALIAS and not fullname.startswith(f"{ALIAS}."):
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """Returns our module of that name."""
        ours = _OURS + spec.name[len(ALIAS) :]
        module = importlib.import_module(ours)
        # The import system writes the alias into the module; what it is stays as it was.
        self._kept = (module, module.__spec__, module.__name__, module.__package__)
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Puts back what the import system wrote."""
        kept, spec, name, package = self._kept
        if kept is module:
            module.__spec__, module.__name__, module.__package__ = spec, name, package


def install_alias() -> None:
    """Makes `mindspore_serving` importable; a second call does nothing."""
    if not any(isinstance(finder, AliasFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, AliasFinder())
