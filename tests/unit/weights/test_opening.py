"""Which reader a path gets, and what is said of a path that is no model."""

from __future__ import annotations

from pathlib import Path

import pytest

from millpond.base.errors import CheckpointError
from millpond.inference.weights import open_checkpoint
from tests.support.gguf_files import convert_model, make_model


@pytest.fixture
def gguf_model(tmp_path: Path) -> Path:
    return convert_model(tmp_path / "tiny.gguf", "llama", make_model("llama"))


def test_a_gguf_file_is_opened(gguf_model: Path) -> None:
    assert open_checkpoint(str(gguf_model)).format == "gguf"


def test_a_directory_with_one_gguf_file_is_opened(gguf_model: Path) -> None:
    assert open_checkpoint(str(gguf_model.parent)).path == str(gguf_model)


def test_a_directory_with_two_gguf_models_asks_for_one(gguf_model: Path) -> None:
    gguf_model.with_name("other.gguf").write_bytes(gguf_model.read_bytes())
    with pytest.raises(CheckpointError, match=r"2 GGUF models \(other\.gguf, tiny\.gguf\)"):
        open_checkpoint(str(gguf_model.parent))


def test_a_directory_saved_by_transformers_is_opened(tmp_path: Path) -> None:
    make_model("llama").save_pretrained(tmp_path / "model")
    assert open_checkpoint(str(tmp_path / "model")).format == "safetensors"


def test_a_path_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere: there is no such file or directory"):
        open_checkpoint(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("weights.bin", "pickled weights"),
        ("weights.safetensors", "weights alone are no model"),
        ("notes.txt", "it is not a GGUF file"),
    ],
)
def test_a_file_of_another_kind_is_explained(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / name).write_bytes(b"something else")
    with pytest.raises(CheckpointError, match=f"{name}: {reason}"):
        open_checkpoint(str(tmp_path / name))
