"""Rotary tables: frequencies of each scaling kind, as `transformers` computes them.

Sources: RoFormer (Su et al. 2021); linear interpolation (Chen et al. 2023); Llama 3.1's smoothed scaling; YaRN (Peng et
al. 2023). Called once at load by the program builder.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from millpond.api.model_spec import RopeSpec
from millpond.base.errors import CheckpointError
from millpond.inference.ops.program import RopeTable

Floats = npt.NDArray[np.float32]


def make_rope_table(spec: RopeSpec, max_position: int) -> RopeTable:
    """Table of cos and sin, [max_position, rotary] float32.

    Raises:
        CheckpointError: The scaling kind is not supported.
    """
    frequencies, magnitude = _frequencies(spec)
    angles = np.outer(np.arange(max_position, dtype=np.float32), frequencies)
    table = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    return RopeTable(table * np.float32(magnitude), spec.rotary_dim)


def _frequencies(spec: RopeSpec) -> tuple[Floats, float]:
    exponents = np.arange(0, spec.rotary_dim, 2, dtype=np.float32) / np.float32(spec.rotary_dim)
    # The power in double precision, then rounded: positions multiply its error.
    plain = np.float32(1.0) / np.power(spec.theta, exponents.astype(np.float64)).astype(np.float32)
    numbers = dict(spec.scaling)
    if spec.scaling_type == "default":
        return plain, 1.0
    if spec.scaling_type == "linear":
        return plain / numbers["factor"], 1.0
    if spec.scaling_type == "llama3":
        return _llama3(plain, numbers), 1.0
    if spec.scaling_type == "yarn":
        return _yarn(plain, spec, numbers)
    raise CheckpointError(
        f"Rope scaling {spec.scaling_type!r} is not supported.", fix="Supported: default, linear, llama3, yarn."
    )


def _llama3(plain: Floats, numbers: dict[str, float]) -> Floats:
    old_length = numbers["original_max_position_embeddings"]
    low, high = numbers["low_freq_factor"], numbers["high_freq_factor"]
    wavelength = 2 * math.pi / plain
    scaled = plain / numbers["factor"]
    smooth = (old_length / wavelength - low) / (high - low)
    blended = (1 - smooth) * scaled + smooth * plain
    out = np.where(wavelength > old_length / low, scaled, plain)
    is_medium = (wavelength >= old_length / high) & (wavelength <= old_length / low)
    return np.where(is_medium, blended, out)


def _yarn(plain: Floats, spec: RopeSpec, numbers: dict[str, float]) -> tuple[Floats, float]:
    factor, old_length = numbers["factor"], numbers["original_max_position_embeddings"]
    beta_fast, beta_slow = numbers.get("beta_fast", 32.0), numbers.get("beta_slow", 1.0)
    dim = spec.rotary_dim

    def correction(rotations: float) -> float:
        return dim * math.log(old_length / (rotations * 2 * math.pi)) / (2 * math.log(spec.theta))

    low = max(math.floor(correction(beta_fast)), 0)
    high = min(math.ceil(correction(beta_slow)), dim - 1)
    ramp = np.clip((np.arange(dim // 2, dtype=np.float32) - low) / max(high - low, 0.001), 0, 1)
    frequencies = plain / factor * ramp + plain * (1 - ramp)
    magnitude = numbers.get("attention_factor") or (0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0)
    return frequencies, magnitude
