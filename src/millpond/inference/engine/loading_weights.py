"""Where an engine's packed parameters come from: a file of an earlier start, or packed now and kept for the next.

Decides what names the file (model, dtype, and all code that has a say in the bytes) and which models are too small for
one. Knows the cache's face and nothing of its files. Called by `make_executor`, and by the doctor, who asks whether the
file is there.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
from importlib.metadata import version
from pathlib import Path

from millpond.base.progress import Progress
from millpond.config.resolved import ResolvedConfig
from millpond.inference.ops import native
from millpond.inference.ops.parameters import CountedParameters, ParameterStore
from millpond.inference.ops.program import Program
from millpond.inference.weights import Checkpoint
from millpond.inference.weights.packed_cache import PackedCache, PackedKey, packed_directory, source_digest
from millpond.inference.weights.packed_file import PackedFile

SMALLEST_KEPT = 32 << 20  # bytes of a model's tensors; less is packed faster than a file is found
_PACKING_ROOMS = ("ops", "models", "weights")  # of millpond.inference: their code decides what is packed, and how


def open_packed(
    config: ResolvedConfig, checkpoint: Checkpoint, program: Program, weights_digest: str, progress: Progress
) -> PackedFile | None:
    """The parameters of `program` from the disk, packed and written there first if they are not.

    Args:
        config: What was decided.
        checkpoint: The model; its pages are released as they were used.
        program: What asks for parameters.
        weights_digest: `checkpoint.content_digest()`.
        progress: Hears ("weights", fraction).

    Returns:
        None where no file is kept: packing is into memory then.
    """
    if not keeps_packed(config, checkpoint):
        return None

    def on_weight(done: int, total: int) -> None:
        checkpoint.release()
        progress("weights", done / total)

    counted = CountedParameters()
    native.pack_parameters(program, config.dtype, counted)

    def pack(store: ParameterStore) -> None:
        native.pack_parameters(program, config.dtype, store, on_weight)
        give_back_heap()

    key, size = packed_key(config, checkpoint, weights_digest), sum(counted.sizes.values())
    return packed_cache(config).open_or_pack(key, size, pack, progress)


def give_back_heap() -> None:
    """Returns freed memory to the system: the allocator would keep it for later, and working copies come once."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def keeps_packed(config: ResolvedConfig, checkpoint: Checkpoint) -> bool:
    """Whether this model's packed parameters are kept on the disk."""
    size = sum(info.size_bytes for info in checkpoint.tensors.values())
    return config.executor == "native" and config.packed_bytes > 0 and size >= SMALLEST_KEPT


def packed_cache(config: ResolvedConfig) -> PackedCache:
    """The directory of packed parameters, as `config` bounds it."""
    return PackedCache(packed_directory(), config.packed_bytes)


def packed_key(config: ResolvedConfig, checkpoint: Checkpoint, weights_digest: str) -> PackedKey:
    """Names the file of this model in this form.

    Raises:
        OSError: The model's files are gone.
    """
    files = sorted({info.file for info in checkpoint.tensors.values()})
    form = hashlib.sha256(f"{config.dtype} {config.isa} {version('torch')} {_code_digest()}".encode())
    return PackedKey(source_digest(weights_digest, files), form.hexdigest(), checkpoint.path, config.dtype)


@functools.cache
def _code_digest() -> str:
    """Of the native library and of every module that has a say in the bytes: nobody has to remember a version."""
    ops = Path(native.__file__).parent
    files = sorted(ops.glob("_native*.so"))
    for room in _PACKING_ROOMS:
        files += sorted((ops.parent / room).glob("*.py"))
    hasher = hashlib.sha256()
    for file in files:
        data = file.read_bytes()
        hasher.update(f"{file.name} {len(data)} ".encode())
        hasher.update(data)
    return hasher.hexdigest()
