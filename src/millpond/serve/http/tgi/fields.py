"""The bodies of TGI's own routes: fields, types and what is wrong by type alone.

Ranges are checked in `checking.py`, because TGI has a text for each. Fields that nobody declared are ignored, as TGI
does.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

_U32 = 2**32 - 1

Count = Annotated[int, Meta(ge=0)]
U32 = Annotated[int, Meta(ge=0, le=_U32)]


class Grammar(msgspec.Struct, frozen=True):
    """A constraint: a JSON schema (as an object, or as text), a regular expression, or a schema with a name."""

    type: Literal["json", "json_object", "regex", "json_schema"]
    value: Any


class Parameters(msgspec.Struct, frozen=True, kw_only=True):
    """How to generate. The default is greedy decoding; without any parameters TGI samples."""

    best_of: Annotated[Count | None, Meta(description="Sample so many and return the best.")] = None
    temperature: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    top_k: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] | None = None
    top_p: float | None = None
    typical_p: float | None = None
    do_sample: bool = False
    max_new_tokens: Annotated[U32 | None, Meta(description="As much as fits when left out.")] = None
    return_full_text: Annotated[bool | None, Meta(description="Put the prompt before the text.")] = None
    stop: Annotated[list[str], Meta(description="Texts that end the answer; they are part of it.")] = []
    truncate: Annotated[Count | None, Meta(description="Keep only so many of the prompt's last tokens.")] = None
    watermark: bool = False
    details: bool = False
    decoder_input_details: Annotated[bool, Meta(description="Return the prompt's tokens too.")] = False
    seed: Count | None = None
    top_n_tokens: U32 | None = None
    grammar: Grammar | None = None
    adapter_id: str | None = None


class GenerateBody(msgspec.Struct, frozen=True, kw_only=True):
    """The body of /generate, /generate_stream and /tokenize."""

    inputs: str
    parameters: Parameters | UnsetType = UNSET
    add_special_tokens: bool = True


class CompatBody(GenerateBody, frozen=True, kw_only=True):
    """The body of POST /."""

    stream: bool = False


class VertexInstance(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt of /vertex."""

    inputs: str
    parameters: Parameters | None = None


def parameters_of(body: GenerateBody) -> Parameters:
    """Returns the body's parameters; a body without any samples."""
    return Parameters(do_sample=True) if body.parameters is UNSET else body.parameters
