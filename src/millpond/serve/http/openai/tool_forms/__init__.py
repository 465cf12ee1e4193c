"""How models write tool calls: one reader a form, one file each, and the table that names them.

`form_of` guesses a model's form from its chat template. Readers take text as it comes and are used for whole answers
too, so that a stream and a reply cannot differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from millpond.serve.http.openai.tool_forms.array import ArrayReader
from millpond.serve.http.openai.tool_forms.base import CallPiece, Piece, ToolReader
from millpond.serve.http.openai.tool_forms.hermes import HermesReader
from millpond.serve.http.openai.tool_forms.llama import LlamaReader

__all__ = ["TOOL_FORMS", "CallPiece", "Piece", "ToolReader", "form_of"]

# Name -> makes a reader for answers that may call these functions.
TOOL_FORMS: Mapping[str, Callable[[frozenset[str]], ToolReader]] = MappingProxyType(
    {"hermes": HermesReader, "llama": LlamaReader, "array": ArrayReader}
)


def form_of(template: str) -> str:
    """Returns the name of the form that a chat template teaches its model."""
    if "TOOL_CALLS" in template:
        return "array"
    if "<tool_call>" in template:
        return "hermes"
    return "llama" if '"parameters"' in template or "python_tag" in template else "hermes"
