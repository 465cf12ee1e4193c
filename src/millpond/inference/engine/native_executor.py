"""Runs steps on this host's processors through the native op library."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from millpond.config.resolved import ResolvedConfig
from millpond.inference.engine.executor import describe_executor
from millpond.inference.ops.inputs import StepInputs
from millpond.inference.ops.native import NativeProgram
from millpond.inference.ops.program import Program
from millpond.inference.weights.packed_file import PackedFile


class NativeExecutor:
    """One rank's native program."""

    def __init__(
        self,
        config: ResolvedConfig,
        program: Program,
        on_weight: Callable[[int, int], None],
        packed: PackedFile | None = None,
    ) -> None:
        self._packed = packed
        self.native = NativeProgram(
            program,
            dtype=config.dtype,
            cache_dtype=config.cache_dtype,
            isa=config.isa,
            num_threads=config.threads,
            num_blocks=config.num_blocks,
            block_size=config.block_size,
            max_tokens=config.max_batch_tokens,
            max_logit_rows=config.max_batch_tokens,
            parameters=packed,
            on_weight=on_weight,
        )
        self.info = describe_executor(
            config,
            vocab_size=program.vocab_size,
            weight_bytes=self.native.weight_bytes,
            cache_bytes=self.native.cache_bytes,
        )
        self.kernel_seconds = 0.0
        self.peaks: npt.NDArray[np.int32] | None = self.native.peaks
        self.sums: npt.NDArray[np.float32] | None = None

    def execute(self, inputs: StepInputs, *, wants_sums: bool = False) -> npt.NDArray[np.float32]:
        """Runs one step; logits [L, V] float32."""
        logits, self.kernel_seconds = self.native.step(inputs, wants_sums=wants_sums)
        self.sums = self.native.sums
        return logits

    def close(self) -> None:
        """Frees threads and memory."""
        self.native.close()
        if self._packed is not None:
            self._packed.close()
