"""Model families: one file each, one row below. A new family is a new file and a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from millpond.api.model_spec import ModelSpec
from millpond.base.errors import CheckpointError
from millpond.inference.models import bloom, gemma3, gpt2, llama, mistral, qwen2, qwen3
from millpond.inference.models.blocks import Family, build_program
from millpond.inference.ops.program import Program

FAMILIES: tuple[Family, ...] = (
    llama.FAMILY,
    mistral.FAMILY,
    qwen2.FAMILY,
    qwen3.FAMILY,
    gemma3.FAMILY,
    gpt2.FAMILY,
    bloom.FAMILY,
)

__all__ = ["FAMILIES", "build_program", "build_spec", "family_of", "make_program"]


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a checkpoint's config.

    Raises:
        CheckpointError: No family serves this `model_type`.
    """
    model_type = config.get("model_type")
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    known = ", ".join(t for family in FAMILIES for t in family.model_types)
    raise CheckpointError(f"The model's type is {model_type!r}, which is not supported.", fix=f"Supported: {known}.")


def build_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Reads a Hugging Face style config into a spec.

    Raises:
        CheckpointError: Unknown family, or a field that is missing or makes no sense.
    """
    if config.get("model_type") == "gemma3" and isinstance(config.get("text_config"), Mapping):
        config = {**config["text_config"], "model_type": "gemma3_text"}
    spec = family_of(config).make_spec(dict(config))
    if spec.num_heads % spec.num_kv_heads:
        raise CheckpointError(f"{spec.num_heads} query heads cannot share {spec.num_kv_heads} key/value heads.")
    return spec


def make_program(
    spec: ModelSpec,
    load: Callable[[str], torch.Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    max_position: int,
) -> Program:
    """The program of a checkpoint.

    Args:
        spec: What `build_spec` made of its config.
        load: Reads a parameter by name, when an executor asks for it.
        shapes: Every parameter of the checkpoint by name.
        max_position: Longest sequence that will run, tokens.

    Raises:
        CheckpointError: A parameter is missing.
    """
    family = next(f for f in FAMILIES if f.name == spec.family)
    names = frozenset(shapes)
    _check_parameters(build_program(spec, family.make_weights(spec, _meta_loader(spec, shapes), names), 1))
    return build_program(spec, family.make_weights(spec, load, names), max_position)


def _meta_loader(spec: ModelSpec, shapes: Mapping[str, tuple[int, ...]]) -> Callable[[str], torch.Tensor]:
    def load(name: str) -> torch.Tensor:
        if name not in shapes:
            raise CheckpointError(
                f"The checkpoint has no tensor {name!r}; a {spec.family} model of {spec.num_layers} layers needs it.",
                fix="Download the model again, or check that config.json belongs to these weights.",
            )
        return torch.empty(shapes[name], device="meta")

    return load


def _check_parameters(program: Program) -> None:
    """Runs every parameter's read on shapes alone, so that a wrong checkpoint is named before memory is taken."""
    for weight in program.weights():
        try:
            shape = tuple(weight.load().shape)
        except (RuntimeError, IndexError) as error:
            raise CheckpointError(f"The tensors that make {weight.name!r} do not fit together: {error}") from error
        if shape != weight.shape:
            raise CheckpointError(
                f"Tensor {weight.name!r} has shape {list(shape)}, but the config says {list(weight.shape)}.",
                fix="Check that config.json belongs to these weights.",
            )
