"""A checkpoint that does not fit its config is named before a parameter is read."""

from __future__ import annotations

import pytest
import torch

from millpond.base.errors import CheckpointError
from millpond.inference.models import build_spec, make_program
from tests.support.tiny_models import VARIANTS, config_dict, make_model


def refuse(name: str) -> torch.Tensor:
    pytest.fail(f"{name} was read")


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_of_a_family_is_checked_by_name_and_shape(variant: str) -> None:
    model = make_model(variant)
    spec = build_spec(config_dict(model))
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    make_program(spec, refuse, shapes, 64)
    tied = {"lm_head.weight"}  # absent or equal to the embedding in tied models
    for name in shapes.keys() - tied:
        with pytest.raises(CheckpointError, match=name):
            make_program(spec, refuse, {k: v for k, v in shapes.items() if k != name}, 64)
        with pytest.raises(CheckpointError, match=name):
            make_program(spec, refuse, {**shapes, name: (*shapes[name], 2)}, 64)


def test_an_unknown_model_type_lists_what_is_supported() -> None:
    with pytest.raises(CheckpointError, match=r"'mamba'.*llama, mistral"):
        build_spec({"model_type": "mamba"})


@pytest.mark.parametrize("value", [None, 0, -4, "64", 2.5, True, 1 << 40])
def test_a_size_that_makes_no_sense_names_its_field(value: object) -> None:
    config = {**config_dict(make_model("llama")), "hidden_size": value}
    with pytest.raises(CheckpointError, match="hidden_size"):
        build_spec(config)
