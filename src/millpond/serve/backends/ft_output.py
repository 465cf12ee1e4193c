"""FasterTransformer's output tensors, made from the tokens of a request's rows.

A row's beams begin with its prompt, what was generated follows at once (the padding of shorter prompts is gone), and
the rest is filled with the row's end_id. The time dimension is the longest prompt plus the longest output of all
requests that ran as one batch. Knows no engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from millpond.serve.backends.ft_request import FtRequest
from millpond.serve.servables.tensors import Tensor


@dataclass(slots=True)
class Beam:
    """What was generated for one beam of one row so far."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    def cut(self, count: int) -> Beam:
        """Returns the beam as it was after so many tokens."""
        return Beam(self.token_ids[:count], self.logprobs[:count])


def make_outputs(
    request: FtRequest, beams: Sequence[Sequence[Beam]], total_length: int, max_output: int
) -> dict[str, Tensor]:
    """Returns every output that the request gets, by name.

    Args:
        request: What was asked for.
        beams: By row, then best first; a row with fewer than `beam_width` repeats its last one.
        total_length: The time dimension of output_ids.
        max_output: The time dimension of output_log_probs.
    """
    shape = (len(request.rows), request.beam_width)
    output_ids = np.empty((*shape, total_length), dtype=np.uint32)
    lengths = np.empty(shape, dtype=np.uint32)
    input_lengths = np.empty(shape, dtype=np.int32)
    cumulative = np.zeros(shape, dtype=np.float32)
    logprobs = np.zeros((*shape, max_output), dtype=np.float32)
    for r, (row, found) in enumerate(zip(request.rows, beams, strict=True)):
        output_ids[r] = np.uint32(row.end_id)
        output_ids[r, :, : len(row.prompt)] = row.prompt
        input_lengths[r] = len(row.prompt)
        for b in range(request.beam_width):
            beam = found[min(b, len(found) - 1)]
            end = len(row.prompt) + len(beam.token_ids)
            output_ids[r, b, len(row.prompt) : end] = beam.token_ids
            lengths[r, b] = end
            logprobs[r, b, : len(beam.logprobs)] = beam.logprobs
            cumulative[r, b] = sum(beam.logprobs)
    tensors = [
        Tensor("output_ids", "UINT32", output_ids),
        Tensor("sequence_length", "UINT32", lengths),
        Tensor("response_input_lengths", "INT32", input_lengths),
    ]
    if request.wants_logprobs:
        tensors += [Tensor("cum_log_probs", "FP32", cumulative), Tensor("output_log_probs", "FP32", logprobs)]
    return {tensor.name: tensor for tensor in tensors}
