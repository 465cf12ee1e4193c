"""Model families: one file each, one row below. A new family is a new file and a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from millpond.api.model_spec import ModelSpec
from millpond.base.errors import CheckpointError
from millpond.inference.models import bloom, gemma3, gpt2, llama, mistral, qwen2, qwen3
from millpond.inference.models.blocks import Family, build_program
from millpond.inference.ops.program import Program, StoredTensors

if TYPE_CHECKING:
    import torch

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
    stored: StoredTensors | None = None,
) -> Program:
    """The program of a checkpoint.

    Args:
        spec: What `build_spec` made of its config.
        load: Reads a parameter by name, when an executor asks for it.
        shapes: Every parameter of the checkpoint by name.
        max_position: Longest sequence that will run, tokens.
        stored: The checkpoint, for those that keep its 4-bit tensors as they are.

    Raises:
        CheckpointError: A parameter is missing.
    """
    family = next(f for f in FAMILIES if f.name == spec.family)
    program = build_program(spec, family.make_weights(spec, load, frozenset(shapes)), max_position)
    for weight in program.weights():
        for name, shape in weight.sources:
            _check_parameter(spec, name, shape, shapes.get(name))
    return replace(program, stored=stored)


def _check_parameter(spec: ModelSpec, name: str, wanted: tuple[int, ...], found: tuple[int, ...] | None) -> None:
    if found is None:
        raise CheckpointError(
            f"The checkpoint has no tensor {name!r}; a {spec.family} model of {spec.num_layers} layers needs it.",
            fix="Download the model again, or check that config.json belongs to these weights.",
        )
    if found != wanted:
        raise CheckpointError(
            f"Tensor {name!r} has shape {list(found)}, but the config says {list(wanted)}.",
            fix="Check that config.json belongs to these weights.",
        )
