"""Millpond: an LLM inference platform.

The public names of the package are those in `__all__`. They are imported when they are first used, so that
`import millpond` costs nothing and the command line starts at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from millpond.api.request import GrammarSpec as GrammarSpec
    from millpond.api.request import OutputEvent as OutputEvent
    from millpond.api.request import Request as Request
    from millpond.api.request import SamplingParams as SamplingParams
    from millpond.base.errors import MillpondError as MillpondError
    from millpond.config.schema import EngineConfig as EngineConfig
    from millpond.inference.engine.client import AsyncEngine as AsyncEngine
    from millpond.inference.engine.llm import LLM as LLM
    from millpond.inference.engine.results import CompletionOutput as CompletionOutput
    from millpond.inference.engine.results import Logprob as Logprob
    from millpond.inference.engine.results import RequestOutput as RequestOutput

    __version__: str

_HOMES = {
    "AsyncEngine": "millpond.inference.engine.client",
    "CompletionOutput": "millpond.inference.engine.results",
    "EngineConfig": "millpond.config.schema",
    "GrammarSpec": "millpond.api.request",
    "LLM": "millpond.inference.engine.llm",
    "Logprob": "millpond.inference.engine.results",
    "MillpondError": "millpond.base.errors",
    "OutputEvent": "millpond.api.request",
    "Request": "millpond.api.request",
    "RequestOutput": "millpond.inference.engine.results",
    "SamplingParams": "millpond.api.request",
}

__all__ = [
    "LLM",
    "AsyncEngine",
    "CompletionOutput",
    "EngineConfig",
    "GrammarSpec",
    "Logprob",
    "MillpondError",
    "OutputEvent",
    "Request",
    "RequestOutput",
    "SamplingParams",
    "__version__",
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("millpond")
    if name not in _HOMES:
        raise AttributeError(f"module 'millpond' has no attribute {name!r}")
    value: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
