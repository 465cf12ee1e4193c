"""Rotary tables: frequencies of each scaling kind, as `transformers` computes them.

Sources: RoFormer (Su et al. 2021); linear interpolation (Chen et al. 2023); Llama 3.1's smoothed scaling; YaRN (Peng et
al. 2023). Called once at load by the program builder.
"""

from __future__ import annotations

import math

import torch

from millpond.api.model_spec import RopeSpec
from millpond.base.errors import CheckpointError
from millpond.inference.ops.program import RopeTable


def make_rope_table(spec: RopeSpec, max_position: int) -> RopeTable:
    """Table of cos and sin, [max_position, rotary] float32.

    Raises:
        CheckpointError: The scaling kind is not supported.
    """
    frequencies, magnitude = _frequencies(spec)
    angles = torch.outer(torch.arange(max_position, dtype=torch.float32), frequencies)
    table = torch.cat([angles.cos() * magnitude, angles.sin() * magnitude], dim=1).contiguous()
    return RopeTable(table, spec.rotary_dim)


def _frequencies(spec: RopeSpec) -> tuple[torch.Tensor, float]:
    half = torch.arange(0, spec.rotary_dim, 2, dtype=torch.int64).float()
    plain = 1.0 / (spec.theta ** (half / spec.rotary_dim))
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


def _llama3(plain: torch.Tensor, numbers: dict[str, float]) -> torch.Tensor:
    old_length = numbers["original_max_position_embeddings"]
    low, high = numbers["low_freq_factor"], numbers["high_freq_factor"]
    wavelength = 2 * math.pi / plain
    scaled = plain / numbers["factor"]
    smooth = (old_length / wavelength - low) / (high - low)
    blended = (1 - smooth) * scaled + smooth * plain
    out = torch.where(wavelength > old_length / low, scaled, plain)
    is_medium = (wavelength >= old_length / high) & (wavelength <= old_length / low)
    return torch.where(is_medium, blended, out)


def _yarn(plain: torch.Tensor, spec: RopeSpec, numbers: dict[str, float]) -> tuple[torch.Tensor, float]:
    factor, old_length = numbers["factor"], numbers["original_max_position_embeddings"]
    beta_fast, beta_slow = numbers.get("beta_fast", 32.0), numbers.get("beta_slow", 1.0)
    dim = spec.rotary_dim

    def correction(rotations: float) -> float:
        return dim * math.log(old_length / (rotations * 2 * math.pi)) / (2 * math.log(spec.theta))

    low = max(math.floor(correction(beta_fast)), 0)
    high = min(math.ceil(correction(beta_slow)), dim - 1)
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)).clamp(0, 1)
    frequencies = plain / factor * ramp + plain * (1 - ramp)
    magnitude = numbers.get("attention_factor") or (0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0)
    return frequencies, magnitude
