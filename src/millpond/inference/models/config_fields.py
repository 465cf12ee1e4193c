"""Typed reading of a checkpoint's config.json, shared by the family files.

Every field is checked for its type and range here, so that a family file states only names and defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from millpond.api.model_spec import RopeSpec
from millpond.base.errors import CheckpointError

LARGEST_SIZE = 1 << 24  # of any dimension; above it a config is corrupt


class ConfigFields:
    """A config with checked access; each error names the field."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config

    def get(self, name: str) -> Any:
        return self._config.get(name)

    def size(self, name: str, default: int | None = None) -> int:
        """A positive whole number."""
        value = self._config.get(name)
        if value is None:
            value = default
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= LARGEST_SIZE:
            raise CheckpointError(
                f"The model's config has {name} = {value!r}; a whole number from 1 to {LARGEST_SIZE} is needed.",
                fix="Check config.json against the original model.",
            )
        return value

    def number(self, name: str, default: float) -> float:
        """A finite number."""
        value = self._config.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value or abs(value) > 1e30:
            raise CheckpointError(f"The model's config has {name} = {value!r}; a number is needed.")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self._config.get(name)
        return default if value is None else bool(value)

    def text(self, name: str, default: str) -> str:
        value = self._config.get(name)
        return default if value is None else str(value)

    def token_ids(self, name: str) -> tuple[int, ...]:
        """One id or a list of them."""
        value = self._config.get(name)
        if value is None:
            return ()
        values = value if isinstance(value, list | tuple) else [value]
        return tuple(int(v) for v in values)

    def token_id(self, name: str) -> int | None:
        ids = self.token_ids(name)
        return ids[0] if ids else None

    def activation(self, name: str, default: str) -> Any:
        """The MLP's activation in our words."""
        known = {
            "silu": "silu",
            "swish": "silu",
            "gelu_pytorch_tanh": "gelu_tanh",
            "gelu_new": "gelu_tanh",
            "gelu_fast": "gelu_tanh",
            "gelu": "gelu",
        }
        value = self.text(name, default)
        if value not in known:
            raise CheckpointError(
                f"The model's config has {name} = {value!r}, which is not supported.",
                fix=f"Supported: {', '.join(known)}.",
            )
        return known[value]

    def rope(self, head_dim: int, default_theta: float, kind: str | None = None) -> RopeSpec:
        """Rotary settings: `rope_parameters` (new; `kind` picks a layer type's) or `rope_theta` + `rope_scaling`."""
        parameters = self._config.get("rope_parameters") or {}
        if kind is not None and isinstance(parameters.get(kind), Mapping):
            parameters = parameters[kind]
        scaling = dict(parameters or self._config.get("rope_scaling") or {})
        theta = float(scaling.pop("rope_theta", None) or self.number("rope_theta", default_theta))
        scaling_type = str(scaling.pop("rope_type", None) or scaling.pop("type", None) or "default")
        scaling.pop("type", None)
        rotary = int(
            head_dim * float(scaling.pop("partial_rotary_factor", None) or self.number("partial_rotary_factor", 1.0))
        )
        if scaling_type in ("llama3", "yarn"):
            scaling.setdefault("original_max_position_embeddings", self.size("max_position_embeddings"))
        numbers = {k: float(v) for k, v in scaling.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        return RopeSpec(theta, rotary, scaling_type, tuple(sorted(numbers.items())))
