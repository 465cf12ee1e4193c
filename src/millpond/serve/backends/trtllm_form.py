"""The tensors of the TensorRT-LLM back end's ensemble: `text_input`, `max_tokens`, ... in, `text_output` and more out.

Every row of a batch is a prompt with parameters of its own. Without top_k and top_p the likeliest token is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from millpond.api.request import SamplingParams
from millpond.inference.text import Tokenizer
from millpond.serve.backends.llm_form import LlmRequest, Prompt, RowPieces, Values
from millpond.serve.backends.llm_sampling import word_ids
from millpond.serve.backends.vllm_form import bytes_tensor, text_tensor
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.messages import InferRequest
from millpond.serve.servables.tensors import Tensor, TensorSpec

_NUMBERS = (
    ("num_return_sequences", "INT32"),
    ("end_id", "INT32"),
    ("pad_id", "INT32"),
    ("top_k", "INT32"),
    ("top_p", "FP32"),
    ("temperature", "FP32"),
    ("length_penalty", "FP32"),
    ("len_penalty", "FP32"),
    ("repetition_penalty", "FP32"),
    ("presence_penalty", "FP32"),
    ("frequency_penalty", "FP32"),
    ("min_tokens", "INT32"),
    ("min_length", "INT32"),
    ("random_seed", "UINT64"),
    ("seed", "UINT64"),
    ("beam_width", "INT32"),
    ("return_log_probs", "BOOL"),
    ("exclude_input_in_output", "BOOL"),
    ("stream", "BOOL"),
)
# Two names over the releases, and the field of ours that they are.
_FIELDS = (
    ("length_penalty", ("length_penalty", "len_penalty")),
    ("repetition_penalty", ("repetition_penalty",)),
    ("presence_penalty", ("presence_penalty",)),
    ("frequency_penalty", ("frequency_penalty",)),
    ("min_tokens", ("min_tokens", "min_length")),
)


class TrtLlmForm:
    """See the module.

    Args:
        has_batch: Whether tensors have a batch dimension.
        excludes_input: What a request that does not say wants.
    """

    inputs: tuple[TensorSpec, ...] = (
        TensorSpec("text_input", "BYTES", (1,)),
        TensorSpec("max_tokens", "INT32", (1,)),
        TensorSpec("bad_words", "BYTES", (-1,), optional=True),
        TensorSpec("stop_words", "BYTES", (-1,), optional=True),
        *(TensorSpec(name, datatype, (1,), optional=True) for name, datatype in _NUMBERS),
    )
    outputs: tuple[TensorSpec, ...] = (
        TensorSpec("text_output", "BYTES", (-1,)),
        TensorSpec("cum_log_probs", "FP32", (-1,)),
        TensorSpec("output_log_probs", "FP32", (-1, -1)),
    )

    def __init__(self, *, has_batch: bool, excludes_input: bool = False) -> None:
        self._has_batch = has_batch
        self._excludes_input = excludes_input

    def read(self, request: InferRequest, tokenizer: Tokenizer) -> LlmRequest:
        """See `Form`."""
        rows = request.inputs["text_input"].array.shape[0] if self._has_batch else 1
        values = [Values(request, row if self._has_batch else None) for row in range(rows)]
        first = values[0]
        is_streamed = bool(first.flag("stream"))
        if is_streamed and rows > 1:
            raise ServableError("invalid_argument", f"A streamed request has one row; this one has {rows}.")
        excluded = first.flag("exclude_input_in_output")
        prompts = tuple(Prompt(each.text("text_input") or "", _params(each, tokenizer)) for each in values)
        if len({prompt.params.n for prompt in prompts}) > 1:
            raise ServableError("invalid_argument", "beam_width must be the same in all rows of a batch.")
        return LlmRequest(
            prompts=prompts,
            is_streamed=is_streamed,
            repeats_prompt=not is_streamed and not (self._excludes_input if excluded is None else excluded),
            returns=frozenset(("logprobs",)) if any(each.flag("return_log_probs") for each in values) else frozenset(),
        )

    def write(self, asked: LlmRequest, rows: Sequence[RowPieces], tokenizer: Tokenizer) -> dict[str, Tensor]:
        """See `Form`."""
        texts = [
            (prompt.text if asked.repeats_prompt else "") + piece.text
            for prompt, row in zip(asked.prompts, rows, strict=True)
            for piece in row.choices
        ]
        shape = (len(rows), len(rows[0].choices))
        output = bytes_tensor("text_output", texts)
        output.array = self._shaped(output.array.reshape(shape))
        outputs = {"text_output": output}
        if asked.returns:
            pieces = [piece for row in rows for piece in row.choices]
            longest = max(len(piece.logprobs or ()) for piece in pieces)
            single = np.zeros((len(pieces), longest), dtype=np.float32)
            for place, piece in enumerate(pieces):
                single[place, : len(piece.logprobs or ())] = [each.logprob for each in piece.logprobs or ()]
            cumulative = np.array([piece.cumulative for piece in pieces], dtype=np.float32)
            outputs["cum_log_probs"] = Tensor("cum_log_probs", "FP32", self._shaped(cumulative.reshape(shape)))
            outputs["output_log_probs"] = Tensor(
                "output_log_probs", "FP32", self._shaped(single.reshape(*shape, longest))
            )
        return outputs

    def text_writer(self, asked: LlmRequest) -> Callable[[str], dict[str, Tensor]] | None:
        """See `Form`."""
        if asked.returns or asked.repeats_prompt:
            return None
        shape = (1, 1) if self._has_batch else (1,)
        return lambda text: {"text_output": text_tensor("text_output", text, shape)}

    def _shaped(self, array: Any) -> Any:
        return array if self._has_batch else array[0]


def _params(values: Values, tokenizer: Tokenizer) -> SamplingParams:
    fields: dict[str, Any] = {"max_tokens": values.first("max_tokens"), **_choosing(values)}
    for name, names in _FIELDS:
        sent = next((values.first(each) for each in names if values.has(each)), None)
        if sent is not None:
            fields[name] = sent
    end_id = values.first("end_id")
    if isinstance(end_id, int) and end_id >= 0:
        known = end_id < tokenizer.vocab_size  # another is never said: nothing ends the row then
        fields |= {"ignore_eos": True, "stop_token_ids": (end_id,) if known else ()}
    if values.flag("return_log_probs"):
        fields["logprobs"] = 0
    return SamplingParams(
        **fields,
        stop=tuple(word for word in values.texts("stop_words") if word),
        bad_words_ids=word_ids(values.texts("bad_words"), tokenizer),
    )


def _choosing(values: Values) -> dict[str, Any]:
    """Beams, the likeliest token, or a draw."""
    width = int(values.first("beam_width") or 1)  # type: ignore[call-overload]  # checked: UINT32
    if width > 1:
        return {"temperature": 0.0, "n": width, "beam_width": width}
    count = {"n": int(values.first("num_return_sequences") or 1)}  # type: ignore[call-overload]  # checked: UINT32
    top_k, top_p = values.first("top_k") or 0, values.first("top_p") or 0.0
    temperature = values.first("temperature")
    if top_k == 1 or (not top_k and not top_p) or temperature == 0.0:
        return {"temperature": 0.0, **count}
    seed = next((values.first(name) for name in ("random_seed", "seed") if values.has(name)), None)
    drawn = {"temperature": 1.0 if temperature is None else temperature, "top_k": top_k, "top_p": top_p or 1.0}
    if isinstance(seed, int):
        drawn["seed"] = seed - (1 << 64) if seed >> 63 else seed
    return {**drawn, **count}
