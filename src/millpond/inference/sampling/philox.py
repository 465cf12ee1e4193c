"""Random numbers by counter: Philox4x32-10 over arrays, one call for all the rows of a step.

A number depends on its key and counter alone, so a sequence's draws are the same whatever else runs in the step, after
a preemption and in another process. Knows nothing of sequences; `sampler` chooses keys and counters.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

UInt64Array = npt.NDArray[np.uint64]
Float64Array = npt.NDArray[np.float64]

# Constants of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC'11).
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)
_WORD = np.uint64(32)


def philox(keys: UInt64Array, counters: UInt64Array) -> UInt64Array:
    """Four 32-bit words for every key and counter.

    Args:
        keys: [N] 64-bit keys.
        counters: [4, N] the 32-bit words of the counters, least significant first.

    Returns:
        [4, N] words below 2**32.
    """
    words = counters.copy()
    key = np.stack([keys & _LOW, keys >> _WORD])  # [2, N]
    multipliers = np.array(_MULTIPLIERS, dtype=np.uint64)[:, None]
    weyl = np.array(_WEYL, dtype=np.uint64)[:, None]
    for _ in range(_ROUNDS):
        product = words[0::2] * multipliers  # [2, N] 32 x 32 -> 64 bits
        mixed = (product[::-1] >> _WORD) ^ words[1::2] ^ key
        words[0::2] = mixed
        words[1::2] = product[::-1] & _LOW
        key = (key + weyl) & _LOW
    return words


def uniforms(keys: UInt64Array, counters: UInt64Array) -> Float64Array:
    """One number in [0, 1) for every key and counter, with 53 random bits."""
    numbers: Float64Array = uniform_pairs(keys, counters)[0]
    return numbers


def uniform_pairs(keys: UInt64Array, counters: UInt64Array) -> Float64Array:
    """[2, N]: what `uniforms` gives, and a second number that is independent of it, from the other half of the bits."""
    words = philox(keys, counters)
    bits = (words[0::2] << np.uint64(21)) | (words[1::2] >> np.uint64(11))
    numbers: Float64Array = bits.astype(np.float64) * 2.0**-53
    return numbers
