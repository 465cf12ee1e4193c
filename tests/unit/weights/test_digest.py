"""The digest that names weights in the KV cache: equal for equal weights, different for all others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from millpond.inference.weights import open_checkpoint
from tests.support.gguf_files import convert_model, make_model


def write_model(directory: Path, weights: torch.Tensor, **config: object) -> str:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    save_file({"w": weights}, directory / "model.safetensors")
    return str(directory)


def digest(path: str) -> str:
    return open_checkpoint(path).content_digest()


def test_copies_have_the_same_digest(tmp_path: Path) -> None:
    weights = torch.randn(300, 300)
    assert digest(write_model(tmp_path / "a", weights)) == digest(write_model(tmp_path / "b", weights.clone()))


@pytest.mark.parametrize("position", [0, -1])
def test_a_changed_first_or_last_number_changes_it(tmp_path: Path, position: int) -> None:
    weights = torch.randn(90_000)
    changed = weights.clone()
    changed[position] += 1
    assert digest(write_model(tmp_path / "a", weights)) != digest(write_model(tmp_path / "b", changed))


def test_a_retrained_tensor_changes_it(tmp_path: Path) -> None:
    weights = torch.randn(300, 300)
    assert digest(write_model(tmp_path / "a", weights)) != digest(write_model(tmp_path / "b", weights * 1.001))


def test_another_config_changes_it(tmp_path: Path) -> None:
    weights = torch.ones(4)
    first = write_model(tmp_path / "a", weights, rope_theta=1e4)
    assert digest(first) != digest(write_model(tmp_path / "b", weights, rope_theta=1e6))


def test_another_shape_of_the_same_bytes_changes_it(tmp_path: Path) -> None:
    first = write_model(tmp_path / "a", torch.ones(2, 3))
    assert digest(first) != digest(write_model(tmp_path / "b", torch.ones(3, 2)))


def test_a_gguf_model_has_one(tmp_path: Path) -> None:
    first = convert_model(tmp_path / "a.gguf", "llama", make_model("llama"))
    second = convert_model(tmp_path / "b.gguf", "llama", make_model("llama"))
    assert digest(str(first)) == digest(str(second))
    assert len(digest(str(first))) == 64
