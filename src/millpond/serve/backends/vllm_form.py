"""The tensors of Triton's vLLM back end: `text_input` and `sampling_parameters` in, `text_output` and more out.

Outputs beside the text are answered when a `return_...` input asks for them. A response has one element a choice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np

from millpond.api.request import TokenLogprob
from millpond.inference.text import Tokenizer
from millpond.serve.backends.llm_form import LlmRequest, Piece, Prompt, RowPieces, Values
from millpond.serve.backends.llm_sampling import read_sampling
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.messages import InferRequest
from millpond.serve.servables.tensors import Tensor, TensorSpec

RETURNS = ("finish_reason", "cumulative_logprob", "logprobs", "num_input_tokens", "num_output_tokens")
_SWITCHES = ("stream", "exclude_input_in_output", *(f"return_{name}" for name in RETURNS))
_OF_THE_PROTOCOL = frozenset(
    ("id", "sequence_id", "sequence_start", "sequence_end", "priority", "timeout", "binary_data_output")
)


class VllmForm:
    """See the module."""

    inputs: tuple[TensorSpec, ...] = (
        TensorSpec("text_input", "BYTES", (1,)),
        TensorSpec("image", "BYTES", (-1,), optional=True),
        TensorSpec("stream", "BOOL", (1,), optional=True),
        TensorSpec("sampling_parameters", "BYTES", (1,), optional=True),
        TensorSpec("exclude_input_in_output", "BOOL", (1,), optional=True),
        *(TensorSpec(f"return_{name}", "BOOL", (1,), optional=True) for name in RETURNS),
    )
    outputs: tuple[TensorSpec, ...] = (
        TensorSpec("text_output", "BYTES", (-1,)),
        TensorSpec("finish_reason", "BYTES", (-1,)),
        TensorSpec("cumulative_logprob", "FP32", (-1,)),
        TensorSpec("logprobs", "BYTES", (-1,)),
        TensorSpec("num_input_tokens", "UINT32", (1,)),
        TensorSpec("num_output_tokens", "UINT32", (-1,)),
    )

    def read(self, request: InferRequest, tokenizer: Tokenizer) -> LlmRequest:
        """See `Form`."""
        values = Values(request, None)
        switches = {name: _switch(values, request.parameters, name) for name in _SWITCHES}
        if values.all("image"):
            raise ServableError("invalid_argument", "Images are not served: the engine completes text.")
        is_streamed = bool(switches["stream"])
        excluded = switches["exclude_input_in_output"]
        if is_streamed and excluded is False:
            raise ServableError("invalid_argument", "When streaming, `exclude_input_in_output` = False is not allowed.")
        params = read_sampling(_sampling_values(values, request.parameters), tokenizer)
        returns = frozenset(name for name in RETURNS if switches[f"return_{name}"])
        if "cumulative_logprob" in returns and params.logprobs is None:
            params = msgspec.structs.replace(params, logprobs=0)
        return LlmRequest(
            prompts=(Prompt(values.text("text_input") or "", params),),
            is_streamed=is_streamed,
            repeats_prompt=not is_streamed and not excluded,
            returns=returns,
        )

    def write(self, asked: LlmRequest, rows: Sequence[RowPieces], tokenizer: Tokenizer) -> dict[str, Tensor]:
        """See `Form`."""
        (row,) = rows
        before = asked.prompts[0].text if asked.repeats_prompt else ""
        outputs = [bytes_tensor("text_output", [before + piece.text for piece in row.choices])]
        for name in RETURNS:
            if name in asked.returns:
                outputs.append(_optional_output(name, row, tokenizer))
        return {tensor.name: tensor for tensor in outputs}

    def text_writer(self, asked: LlmRequest) -> Callable[[str], dict[str, Tensor]] | None:
        """See `Form`."""
        if asked.returns or asked.repeats_prompt:
            return None
        return lambda text: {"text_output": text_tensor("text_output", text, (1,))}


def text_tensor(name: str, text: str, shape: tuple[int, ...]) -> Tensor:
    """Returns one text as a BYTES tensor."""
    array = np.empty(shape, dtype=object)
    array.flat[0] = text.encode("utf-8")
    return Tensor(name, "BYTES", array)


def bytes_tensor(name: str, texts: Sequence[str]) -> Tensor:
    """Returns texts as a BYTES tensor."""
    array = np.empty(len(texts), dtype=object)
    array[:] = [text.encode("utf-8") for text in texts]
    return Tensor(name, "BYTES", array)


def _optional_output(name: str, row: RowPieces, tokenizer: Tokenizer) -> Tensor:
    pieces = row.choices
    if name == "finish_reason":
        return bytes_tensor(name, [str(piece.finish_reason) for piece in pieces])
    if name == "cumulative_logprob":
        return Tensor(name, "FP32", np.array([piece.cumulative for piece in pieces], dtype=np.float32))
    if name == "logprobs":
        return bytes_tensor(name, [_logprobs_json(piece, tokenizer) for piece in pieces])
    if name == "num_input_tokens":
        return Tensor(name, "UINT32", np.array([row.num_prompt_tokens], dtype=np.uint32))
    return Tensor(name, "UINT32", np.array([piece.num_tokens for piece in pieces], dtype=np.uint32))


def _logprobs_json(piece: Piece, tokenizer: Tokenizer) -> str:
    if piece.logprobs is None:
        return "null"
    return json.dumps([_position(each, tokenizer) for each in piece.logprobs])


def _position(chosen: TokenLogprob, tokenizer: Tokenizer) -> dict[int, dict[str, object]]:
    """The tokens of one place by id: the chosen one and the likeliest ones."""
    ranked = {chosen.token_id: (chosen.logprob, chosen.rank)}
    ranked |= {token_id: (logprob, rank) for rank, (token_id, logprob) in enumerate(chosen.top, 1)}
    return {
        token_id: {
            "logprob": logprob,
            "rank": rank,
            "decoded_token": tokenizer.token_bytes(token_id).decode("utf-8", "replace"),
        }
        for token_id, (logprob, rank) in ranked.items()
    }


def _switch(values: Values, parameters: Mapping[str, object], name: str) -> bool | None:
    """A switch as a tensor, or where there is none as a parameter of the request."""
    sent = values.flag(name)
    if sent is not None or name not in parameters:
        return sent
    value = parameters[name]
    if isinstance(value, str):
        value = {"true": True, "false": False}.get(value.strip().lower(), value)
    if not isinstance(value, bool):
        raise ServableError("invalid_argument", f"The parameter {name} must be true or false.")
    return value


def _sampling_values(values: Values, parameters: Mapping[str, object]) -> dict[str, object]:
    text = values.text("sampling_parameters")
    if text is None:
        return {
            name: value
            for name, value in parameters.items()
            if name not in _SWITCHES and name not in _OF_THE_PROTOCOL and not name.startswith("triton_")
        }
    if not text.strip():
        return {}
    try:
        read = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ServableError("invalid_argument", f"sampling_parameters is not JSON: {error}.") from None
    if not isinstance(read, dict):
        raise ServableError("invalid_argument", "sampling_parameters must be a JSON object.")
    return read
