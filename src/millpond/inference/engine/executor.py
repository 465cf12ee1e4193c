"""The executor seam: what computes a step on a device, chosen once at start.

The engine core knows this protocol and nothing below it. Two implementations: `NativeExecutor` (C++ ops) and
`ReferenceExecutor` (plain torch). An executor owns the parameters, the KV cache and the activations of one rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from millpond.api.model_spec import ModelSpec
from millpond.config.resolved import ResolvedConfig
from millpond.inference.models import make_program
from millpond.inference.ops.inputs import StepInputs
from millpond.inference.weights import Checkpoint
from millpond.inference.weights.gguf_int4 import stored_blocks
from millpond.inference.weights.packed_file import PackedFileError

Progress = Callable[[str, float], None]  # stage, fraction done


@dataclass(frozen=True, slots=True)
class ExecutorInfo:
    """What an executor holds. Sizes are bytes."""

    name: str
    isa: str
    threads: int
    dtype: str
    cache_dtype: str
    num_blocks: int
    block_size: int
    vocab_size: int
    max_batch_tokens: int
    weight_bytes: int
    cache_bytes: int


def describe_executor(config: ResolvedConfig, *, vocab_size: int, weight_bytes: int, cache_bytes: int) -> ExecutorInfo:
    """What an executor made from `config` is, once it knows its sizes."""
    return ExecutorInfo(
        name=config.executor,
        isa=config.isa,
        threads=config.threads,
        dtype=config.dtype,
        cache_dtype=config.cache_dtype,
        num_blocks=config.num_blocks,
        block_size=config.block_size,
        vocab_size=vocab_size,
        max_batch_tokens=config.max_batch_tokens,
        weight_bytes=weight_bytes,
        cache_bytes=cache_bytes,
    )


class Executor(Protocol):
    """Computes steps.

    Attributes:
        info: What it is.
        kernel_seconds: How long the last step computed.
        peaks: The column of each logit row's largest value in the last step, -1 where it was not found, for executors
            that see it in passing; else None.
        sums: Sums of the exponentials of each logit row of the last step, [L, parts of the row], when they were wanted
            and could be had in passing; else None. Of use for rows without a value above `SAFE_PEAK`.
    """

    info: ExecutorInfo
    kernel_seconds: float
    peaks: npt.NDArray[np.int32] | None
    sums: npt.NDArray[np.float32] | None

    def execute(self, inputs: StepInputs, *, wants_sums: bool = False) -> npt.NDArray[np.float32]:
        """Runs one step.

        Returns:
            Logits [L, V] float32 of `inputs.logit_rows`, valid until the next call.
        """
        ...

    def close(self) -> None:
        """Frees threads and memory."""
        ...


def make_executor(
    config: ResolvedConfig,
    checkpoint: Checkpoint,
    spec: ModelSpec,
    progress: Progress = lambda stage, fraction: None,
    weights_digest: str | None = None,
) -> Executor:
    """Loads the parameters into the executor that `config` names.

    Args:
        config: What was decided.
        checkpoint: Where the parameters are; read once, a tensor at a time.
        spec: The model.
        progress: Hears ("weights", fraction) while loading.
        weights_digest: `checkpoint.content_digest()`, if it is known already.

    Raises:
        CheckpointError: A tensor is missing or has another shape than the config says.
        ConfigError: The native library is missing or refuses the instruction set.
        MemoryError: Parameters or cache do not fit.
    """
    from millpond.inference.engine.loading_weights import open_packed, packed_cache
    from millpond.inference.engine.native_executor import NativeExecutor

    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    program = make_program(spec, checkpoint.read, shapes, config.max_model_len, stored_blocks(checkpoint))

    def on_weight(done: int, total: int) -> None:
        if config.executor == "native":  # which has copies of its own
            checkpoint.release()
        progress("weights", done / total)

    if config.executor != "native":
        from millpond.inference.engine.reference_executor import ReferenceExecutor

        return ReferenceExecutor(config, program, on_weight)
    digest = checkpoint.content_digest() if weights_digest is None else weights_digest
    packed = open_packed(config, checkpoint, program, digest, progress)
    try:
        return NativeExecutor(config, program, on_weight, packed)
    except PackedFileError as error:
        assert packed is not None
        packed_cache(config).reject(packed, str(error))
        return NativeExecutor(config, program, on_weight)
