"""MindSpore Serving's Python packages, answered by Millpond: `server`, `server.register`, `client`.

A script or `servable_config.py` written for `mindspore_serving` runs with its import line changed, or unchanged under
`python -m millpond.compat.mindspore_serving script.py`. See docs/guide/mindspore-serving.md.
"""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["client", "log", "register", "server"]

_MODULES = {"server": "server", "register": "server.register", "client": "client", "log": "log"}


def __getattr__(name: str) -> ModuleType:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.{_MODULES[name]}")
