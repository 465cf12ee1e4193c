"""Runs steps in plain torch: slow, on every machine, and what the native executor is compared with."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from millpond.config.resolved import ResolvedConfig
from millpond.inference.engine.executor import describe_executor
from millpond.inference.ops.inputs import StepInputs
from millpond.inference.ops.program import Program
from millpond.inference.ops.reference import ReferenceProgram


class ReferenceExecutor:
    """One rank's program in torch."""

    def __init__(self, config: ResolvedConfig, program: Program, on_weight: Callable[[int, int], None]) -> None:
        torch.set_num_threads(config.threads)
        self._program = ReferenceProgram(
            program,
            dtype=config.dtype,
            num_slots=config.num_blocks * config.block_size,
            deterministic=config.deterministic,
            cache_dtype=config.cache_dtype,
            on_weight=on_weight,
        )
        self.info = describe_executor(
            config,
            vocab_size=program.vocab_size,
            weight_bytes=self._program.weight_bytes,
            cache_bytes=self._program.cache_bytes,
        )
        self.kernel_seconds = 0.0
        self.peaks: npt.NDArray[np.int32] | None = None  # torch has nothing in passing
        self.sums: npt.NDArray[np.float32] | None = None

    def execute(self, inputs: StepInputs, *, wants_sums: bool = False) -> npt.NDArray[np.float32]:
        """Runs one step; logits [L, V] float32."""
        start = time.perf_counter()
        logits = self._program.run(inputs)
        self.kernel_seconds = time.perf_counter() - start
        return logits.numpy()

    def close(self) -> None:
        """Nothing is held outside torch."""
