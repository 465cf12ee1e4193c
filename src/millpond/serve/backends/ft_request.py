"""One FasterTransformer request: its tensors as prompts and sampling parameters, row by row.

Owns the meaning of every input: what is the default, what falls back to what, what is not served. Checks shapes and
values that a configuration cannot; the engine's admission checks the rest. Runs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from millpond.api.request import SamplingParams
from millpond.api.validate import MAX_STOP_TOKEN_IDS
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.tensors import Tensor

BEAM_WIDTHS = (1, 2, 3, 4, 8, 16, 32)
_LARGEST_OUTPUT = 1 << 20
_MASK63 = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class FtModel:
    """What a request needs to know of the model.

    Attributes:
        end_id: Fills the tail of the output; ends a row that names no end_id when `is_own_end`.
        is_own_end: Whether `end_id` came with the folder and replaces the model's own ends.
    """

    vocab_size: int
    end_id: int
    is_own_end: bool = False


@dataclass(frozen=True, slots=True)
class FtRow:
    """One row of a batch.

    Attributes:
        params: `max_tokens` is what the row asks for, 0 included.
        end_id: What the tail of its output is filled with.
        stop_words: Token sequences that end it and that the engine does not look for: those of several tokens.
    """

    prompt: list[int]
    params: SamplingParams
    num_tokens: int
    end_id: int
    stop_words: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class FtRequest:
    """A request.

    Attributes:
        max_input: Width of its input_ids.
        max_output: The longest output that a row asks for.
        beam_width: Of all rows.
        wants_logprobs: Whether cum_log_probs and output_log_probs are answered.
    """

    rows: tuple[FtRow, ...]
    max_input: int
    max_output: int
    beam_width: int
    wants_logprobs: bool


def parse_request(inputs: Mapping[str, Tensor], model: FtModel) -> FtRequest:
    """Returns what the tensors ask for.

    Raises:
        ServableError: A tensor's size or value cannot be, or asks for what is not served.
    """
    ids = inputs["input_ids"].array
    if ids.ndim != 2 or ids.shape[0] == 0:
        raise _invalid(f"input_ids has shape {list(ids.shape)}; it must be [batch, tokens].")
    tensors = _Rows(inputs, ids.shape[0])
    _check_unserved(tensors)
    lengths = tensors.integers("input_lengths", None)
    outputs = tensors.integers("request_output_len", None)
    width = tensors.integers("beam_width", 1)[0]
    width = width if width in BEAM_WIDTHS else 1
    if width > 1 and any(tensors.floats("beam_search_diversity_rate", 0.0)):
        raise _invalid("beam_search_diversity_rate is not served. Send 0.")
    wants_logprobs = bool(tensors.integers("is_return_log_probs", 0)[0])
    rows = []
    for row, (length, num_tokens) in enumerate(zip(lengths, outputs, strict=True)):
        if length > ids.shape[1]:
            raise _invalid(f"Row {row}: input_lengths is {length} and input_ids has {ids.shape[1]} columns.")
        if num_tokens > _LARGEST_OUTPUT:
            raise _invalid(f"Row {row}: request_output_len is {num_tokens}; at most {_LARGEST_OUTPUT} is served.")
        rows.append(
            _make_row(tensors, row, ids[row, :length].tolist(), num_tokens, _Asked(model, width, wants_logprobs))
        )
    return FtRequest(tuple(rows), ids.shape[1], max(outputs), width, wants_logprobs)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is the same for all rows."""

    model: FtModel
    beam_width: int
    wants_logprobs: bool


def _make_row(tensors: _Rows, row: int, prompt: list[int], num_tokens: int, asked: _Asked) -> FtRow:
    model, width = asked.model, asked.beam_width
    given_end = tensors.has("end_id") or model.is_own_end
    end_id = tensors.integers("end_id", model.end_id)[row]
    stop_words = tensors.words("stop_words_list", row)
    stops = {word[0] for word in stop_words if len(word) == 1}
    if given_end:
        stops.add(end_id)
    longer = tuple(word for word in stop_words if len(word) > 1)
    if width > 1 and longer:
        raise _invalid("Beam search takes stop words of one token only. Send beam_width 1, or shorter words.")
    known = sorted(stop for stop in stops if 0 <= stop < model.vocab_size)  # others are never said
    if len(known) > MAX_STOP_TOKEN_IDS:
        raise _invalid(f"stop_words_list has more than {MAX_STOP_TOKEN_IDS} words of one token.")
    bad_words = tuple(word for word in tensors.words("bad_words_list", row) if max(word) < model.vocab_size)
    params = SamplingParams(
        max_tokens=max(1, num_tokens),
        stop_token_ids=tuple(known),
        bad_words_ids=bad_words,
        ignore_eos=given_end,
        logprobs=0 if asked.wants_logprobs else None,
        skip_special_tokens=False,
        repetition_penalty=tensors.floats("repetition_penalty", 1.0)[row],
    )
    choosing = _beam_fields(tensors, row, width) if width > 1 else _sampling_fields(tensors, row)
    params = msgspec.structs.replace(params, **choosing)
    return FtRow(prompt, params, num_tokens, end_id, longer)


def _beam_fields(tensors: _Rows, row: int, width: int) -> dict[str, float]:
    penalty = tensors.floats("len_penalty", 0.0)[row]
    return {"temperature": 0.0, "n": width, "beam_width": width, "length_penalty": penalty}


def _sampling_fields(tensors: _Rows, row: int) -> dict[str, float]:
    top_k = tensors.integers("runtime_top_k", 0)[row]
    top_p = min(max(tensors.floats("runtime_top_p", 0.0)[row], 0.0), 1.0)
    temperature = tensors.floats("temperature", 1.0)[row]
    if top_k == 1 or (top_k == 0 and top_p == 0.0) or temperature == 0.0:
        return {"temperature": 0.0}
    seed = tensors.integers("random_seed", 0)[row]
    return {
        "temperature": temperature,
        "top_k": min(top_k, (1 << 31) - 1),
        "top_p": top_p or 1.0,
        "seed": seed - (1 << 64) if seed > _MASK63 else seed,
    }


def _check_unserved(tensors: _Rows) -> None:
    """Refuses what would change the output if it were dropped; values that change nothing pass."""
    if any(tensors.integers("is_return_context_embeddings", 0)):
        raise _invalid("context_embeddings are not served. Send is_return_context_embeddings false.")
    for name in ("prompt_learning_task_name_ids", "request_prompt_lengths", "request_prompt_type"):
        if any(tensors.integers(name, 0)):
            raise _invalid(f"{name}: prompt and prefix tuning are not served. Leave the input out.")
    if tensors.has("request_prompt_embedding") and not tensors.has("request_prompt_lengths"):
        raise _invalid("request_prompt_embedding: prompt and prefix tuning are not served. Leave the input out.")
    if any(0.0 < decay < 1.0 for decay in tensors.floats("top_p_decay", 1.0)):
        raise _invalid("top_p_decay is not served. Send 1, or leave the input out.")


class _Rows:
    """A request's tensors by name and row."""

    def __init__(self, inputs: Mapping[str, Tensor], count: int) -> None:
        self._inputs = inputs
        self._count = count

    def has(self, name: str) -> bool:
        return name in self._inputs

    def integers(self, name: str, default: int | None) -> list[int]:
        """Every row's value; `default` where the tensor is not sent, None when it must be."""
        return [int(value) for value in self._column(name, default)]

    def floats(self, name: str, default: float) -> list[float]:
        return [float(value) for value in self._column(name, default)]

    def words(self, name: str, row: int) -> tuple[tuple[int, ...], ...]:
        """A row's list of words: ids one after the other, and below them where each word ends, padded with -1."""
        tensor = self._inputs.get(name)
        if tensor is None:
            return ()
        array = tensor.array
        if array.ndim != 3 or array.shape[0] != self._count or array.shape[1] != 2:
            raise _invalid(f"{name} has shape {list(array.shape)}; it must be [batch, 2, tokens].")
        ids, ends = array[row].tolist()
        words: list[tuple[int, ...]] = []
        start = 0
        for end in ends:
            if end < 0:
                break
            if not start <= end <= len(ids) or min(ids[start:end], default=0) < 0:
                raise _invalid(f"{name}, row {row}: the second line must be rising ends of words in the first line.")
            if end > start:
                words.append(tuple(ids[start:end]))
            start = end
        return tuple(words)

    def _column(self, name: str, default: float | None) -> npt.NDArray[np.generic] | list[float]:
        tensor = self._inputs.get(name)
        if tensor is None:
            if default is None:
                raise _invalid(f"The input {name} is missing.")
            return [default] * self._count
        array = tensor.array
        if array.shape[:1] != (self._count,) or array.size < self._count:
            raise _invalid(f"{name} has shape {list(array.shape)}; it must have {self._count} rows of one value.")
        return array.reshape(self._count, -1)[:, 0]


def _invalid(text: str) -> ServableError:
    return ServableError("invalid_argument", text)
