"""What the tensor forms of an LLM servable have in common: the request and the pieces of an answer.

A form (`vllm_form`, `trtllm_form`) names the tensors, reads a request from them and makes responses; `llm` runs what
was read. Also how single values are read from tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from millpond.api.request import FinishReason, SamplingParams, TokenLogprob
from millpond.inference.text import Tokenizer
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.messages import InferRequest
from millpond.serve.servables.tensors import Tensor, TensorSpec


@dataclass(frozen=True, slots=True)
class Prompt:
    """A row of a request: one text to complete."""

    text: str
    params: SamplingParams


@dataclass(frozen=True, slots=True)
class LlmRequest:
    """What a request asks for.

    Attributes:
        is_streamed: Whether pieces are answered as they come; one prompt only.
        repeats_prompt: Whether the answer begins with the prompt.
        returns: Names of the optional outputs that are wanted.
    """

    prompts: tuple[Prompt, ...]
    is_streamed: bool
    repeats_prompt: bool
    returns: frozenset[str]


@dataclass(slots=True)
class Piece:
    """What a choice said since the last response.

    Attributes:
        cumulative: Sum of the choice's log-probabilities so far.
        finish_reason: None while it goes on.
    """

    text: str = ""
    num_tokens: int = 0
    logprobs: list[TokenLogprob] | None = None
    cumulative: float = 0.0
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class RowPieces:
    """A row's pieces by choice, and how long its prompt was."""

    num_prompt_tokens: int
    choices: Sequence[Piece]


class Form(Protocol):
    """The tensors of an LLM servable."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def read(self, request: InferRequest, tokenizer: Tokenizer) -> LlmRequest:
        """Returns what a request asks for.

        Raises:
            ServableError: It makes no sense.
        """

    def write(self, asked: LlmRequest, rows: Sequence[RowPieces], tokenizer: Tokenizer) -> dict[str, Tensor]:
        """Returns the outputs of a response by name."""

    def text_writer(self, asked: LlmRequest) -> Callable[[str], dict[str, Tensor]] | None:
        """Returns what `write` does for a request whose pieces are one text each; None for any other."""


class Values:
    """Single values of a request's tensors, for one row.

    Args:
        request: Checked against the configuration.
        row: Which one; None where there is no batch dimension.
    """

    def __init__(self, request: InferRequest, row: int | None) -> None:
        self._request = request
        self._row = row

    def has(self, name: str) -> bool:
        return name in self._request.inputs

    def all(self, name: str) -> list[object]:
        """A tensor's values; none when it was not sent."""
        tensor = self._request.inputs.get(name)
        if tensor is None:
            return []
        array = tensor.array if self._row is None else tensor.array[self._row]
        values: list[object] = array.reshape(-1).tolist()
        return values

    def first(self, name: str) -> object:
        """The value of a tensor that has one; None when it was not sent."""
        values = self.all(name)
        if not values and self.has(name):
            raise ServableError("invalid_argument", f"{name} holds no value.")
        return values[0] if values else None

    def flag(self, name: str) -> bool | None:
        value = self.first(name)
        return None if value is None else bool(value)

    def texts(self, name: str) -> list[str]:
        return [as_text(name, value) for value in self.all(name)]

    def text(self, name: str) -> str | None:
        value = self.first(name)
        return None if value is None else as_text(name, value)


def as_text(name: str, value: object) -> str:
    """Returns an element of a BYTES tensor as text.

    Raises:
        ServableError: It is not UTF-8.
    """
    if isinstance(value, str):
        return value
    try:
        return bytes(value).decode("utf-8")  # type: ignore[call-overload,no-any-return]  # a BYTES element
    except UnicodeDecodeError as error:
        raise ServableError("invalid_argument", f"{name} is not UTF-8: byte {error.start}.") from None
