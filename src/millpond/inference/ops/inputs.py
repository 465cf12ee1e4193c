"""`StepInputs`: the arrays that describe one forward step to an executor.

Built by the engine from a step plan; read by every executor. All arrays are int32 and C-contiguous, so the native
program reads them without a copy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class StepInputs:
    """T tokens of B sequences; L of the tokens need logits.

    Attributes:
        token_ids: [T] the tokens to compute, sequence after sequence.
        positions: [T] their positions in their sequences.
        slots: [T] where their keys and values go: block_id * block_size + offset.
        query_start: [B+1] sequence b owns rows query_start[b] to query_start[b+1].
        context_len: [B] tokens of the sequence that are in the cache after this step.
        block_tables: [B, max_blocks] block ids; only the first ceil(context_len / block_size) of a row are read.
        logit_rows: [L] rows of the tokens whose logits are wanted, in the order they come back.
        block_size: Tokens in a block.
    """

    token_ids: Int32Array
    positions: Int32Array
    slots: Int32Array
    query_start: Int32Array
    context_len: Int32Array
    block_tables: Int32Array
    logit_rows: Int32Array
    block_size: int

    @property
    def num_tokens(self) -> int:
        """T."""
        return int(self.token_ids.shape[0])

    @property
    def num_sequences(self) -> int:
        """B."""
        return int(self.context_len.shape[0])
