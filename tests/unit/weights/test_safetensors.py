"""Safetensors files and directories: what is read, against the reference library, and what is refused."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from millpond.base.errors import CheckpointError
from millpond.inference.weights.safetensors_checkpoint import SafetensorsCheckpoint
from millpond.inference.weights.safetensors_file import read_safetensors_header

DTYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
)


def write_raw(path: Path, header: Any, data: bytes = b"") -> str:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)
    return str(path)


def entry(begin: int = 0, end: int = 16, shape: Any = (4,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def make_directory(directory: Path, tensors: dict[str, torch.Tensor], model_type: str = "llama") -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"model_type": model_type}))
    save_file(tensors, directory / "model.safetensors")
    return directory


def make_shards(directory: Path, weight_map: dict[str, str] | None = None) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text('{"model_type": "llama"}')
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    save_file({"a": torch.arange(6.0).view(2, 3)}, directory / first)
    save_file({"b": torch.ones(4)}, directory / second)
    weight_map = {"a": first, "b": second} if weight_map is None else weight_map
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return directory


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_type_is_read_as_it_was_written(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = torch.randn(3, 5).mul(10).to(dtype)
    checkpoint = SafetensorsCheckpoint(str(make_directory(tmp_path, {"w": tensor})))
    assert torch.equal(checkpoint.read("w"), tensor)


def test_scalars_and_empty_tensors_are_read(tmp_path: Path) -> None:
    tensors = {"scalar": torch.tensor(3.5), "empty": torch.empty(0, 4)}
    checkpoint = SafetensorsCheckpoint(str(make_directory(tmp_path, tensors)))
    for name, tensor in tensors.items():
        assert torch.equal(checkpoint.read(name), tensor)


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_slices_equal_those_of_the_reference_library(tmp_path: Path, dim: int) -> None:
    directory = make_directory(tmp_path, {"w": torch.randn(6, 7, 8)})
    part = SafetensorsCheckpoint(str(directory)).read("w", start=2, stop=5, dim=dim)
    with safe_open(directory / "model.safetensors", "pt") as file:
        index = [slice(None)] * 3
        index[dim] = slice(2, 5)
        assert torch.equal(part, file.get_slice("w")[tuple(index)])
    assert part.is_contiguous()


def test_a_row_slice_shares_the_mapped_file(tmp_path: Path) -> None:
    checkpoint = SafetensorsCheckpoint(str(make_directory(tmp_path, {"w": torch.randn(64, 64)})))
    whole, part = checkpoint.read("w"), checkpoint.read("w", start=8, stop=16)
    assert part.data_ptr() == whole.data_ptr() + 8 * 64 * 4


def test_numbers_behind_a_header_of_odd_length_are_read(tmp_path: Path) -> None:
    numbers = torch.arange(4.0)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    header = json.dumps({"w": entry()}).encode()
    header += b" " * (7 - len(header) % 8)
    write_raw(tmp_path / "model.safetensors", header, numbers.numpy().tobytes())
    assert torch.equal(SafetensorsCheckpoint(str(tmp_path)).read("w"), numbers)


def test_tensors_outlive_the_checkpoint_they_came_from(tmp_path: Path) -> None:
    checkpoint = SafetensorsCheckpoint(str(make_directory(tmp_path, {"w": torch.ones(1000)})))
    tensor = checkpoint.read("w")
    checkpoint.close()
    assert tensor.sum().item() == 1000


def test_shards_are_read_through_the_index(tmp_path: Path) -> None:
    checkpoint = SafetensorsCheckpoint(str(make_shards(tmp_path / "model")))
    assert torch.equal(checkpoint.read("a"), torch.arange(6.0).view(2, 3))
    assert torch.equal(checkpoint.read("b"), torch.ones(4))


def test_shards_without_an_index_are_read_together(tmp_path: Path) -> None:
    directory = make_shards(tmp_path / "model")
    (directory / "model.safetensors.index.json").unlink()
    assert set(SafetensorsCheckpoint(str(directory)).tensors) == {"a", "b"}


def test_a_shard_may_be_a_link_to_elsewhere(tmp_path: Path) -> None:
    directory = make_shards(tmp_path / "model")
    shard = directory / "model-00002-of-00002.safetensors"
    shard.rename(tmp_path / "blob")
    shard.symlink_to(tmp_path / "blob")
    assert torch.equal(SafetensorsCheckpoint(str(directory)).read("b"), torch.ones(4))


def test_a_missing_shard_is_named_with_a_tensor_of_it(tmp_path: Path) -> None:
    directory = make_shards(tmp_path / "model")
    (directory / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"'b': its shard model-00002-of-00002\.safetensors is missing"):
        SafetensorsCheckpoint(str(directory))


def test_a_tensor_its_shard_does_not_hold_is_named(tmp_path: Path) -> None:
    directory = make_shards(tmp_path / "model", {"c": "model-00001-of-00002.safetensors"})
    with pytest.raises(CheckpointError, match=r"'c': it is not in model-00001-of-00002\.safetensors"):
        SafetensorsCheckpoint(str(directory))


@pytest.mark.parametrize(
    "shard",
    ["../secret.safetensors", "/etc/secret.safetensors", "sub/a.safetensors", "..", "", "a\\b.safetensors", "a.bin", 7],
)
def test_an_index_that_leaves_its_directory_is_refused(tmp_path: Path, shard: object) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "secret.safetensors")
    directory = make_shards(tmp_path / "model", {"a": shard})  # type: ignore[dict-item]
    with pytest.raises(CheckpointError, match=r"index\.json: tensor 'a': .* is not the name of a file"):
        SafetensorsCheckpoint(str(directory))


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"weight_map": []}', "[" * 100_000], ids=["list", "cut", "map", "deep"]
)
def test_an_index_that_is_no_index_is_refused(tmp_path: Path, content: str) -> None:
    directory = make_shards(tmp_path / "model")
    (directory / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json"):
        SafetensorsCheckpoint(str(directory))


BAD_TENSORS = {
    "the type 'F8_E4M3' is not supported": entry(dtype="F8_E4M3"),
    "the type 'I4' is not supported": entry(dtype="I4"),
    "is not a shape": entry(shape=[-4]),
    r"'\[4\.0\]' is not a shape": entry(shape=[4.0]),
    r"'\[True\]' is not a shape": entry(shape=[True]),
    "its data offsets are no range": entry(begin=16, end=0),
    "lacks a dtype": {"shape": [4]},
    "its header entry lacks": [1, 2],
    r"takes 20 bytes and 16 are given": entry(shape=[5]),
    "truncated: it ends at byte": entry(end=64, shape=[16]),
    r"\[1152921504606846976, 16\] in F32 takes": entry(shape=[1 << 60, 16]),
}


@pytest.mark.parametrize(("reason", "bad"), BAD_TENSORS.items(), ids=BAD_TENSORS.keys())
def test_a_bad_tensor_is_named_with_the_reason(tmp_path: Path, reason: str, bad: Any) -> None:
    path = write_raw(tmp_path / "model.safetensors", {"w": bad}, bytes(16))
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: tensor 'w': .*{reason}"):
        read_safetensors_header(path)


def test_overlapping_tensors_are_named(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "model.safetensors", {"a": entry(), "b": entry(8, 24)}, bytes(24))
    with pytest.raises(CheckpointError, match="tensor 'b': overlaps tensor 'a'"):
        read_safetensors_header(path)


def test_bytes_between_tensors_are_refused(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "model.safetensors", {"a": entry(), "b": entry(20, 36)}, bytes(36))
    with pytest.raises(CheckpointError, match="tensor 'b': 4 bytes before it"):
        read_safetensors_header(path)


def test_bytes_behind_the_last_tensor_are_refused(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "model.safetensors", {"a": entry()}, bytes(20))
    with pytest.raises(CheckpointError, match="4 bytes at its end"):
        read_safetensors_header(path)


def test_a_name_that_stands_twice_is_refused(tmp_path: Path) -> None:
    row = json.dumps(entry())
    path = write_raw(tmp_path / "model.safetensors", f'{{"a": {row}, "a": {row}}}'.encode(), bytes(16))
    with pytest.raises(CheckpointError, match="stands in it twice"):
        read_safetensors_header(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "too few"),
        (b"\x01\x02\x03", "too few"),
        ((1 << 62).to_bytes(8, "little"), "no safetensors file"),
        ((5000).to_bytes(8, "little") + b"{}", "truncated"),
        ((2).to_bytes(8, "little") + b"[]", "not a JSON object"),
        ((4).to_bytes(8, "little") + b"\xff\xfe{}", "not valid JSON"),
        ((60_000).to_bytes(8, "little") + b'{"a":' * 12_000, "not valid JSON"),
    ],
)
def test_a_header_that_is_none_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: .*{reason}"):
        read_safetensors_header(str(path))


@settings(max_examples=300)
@given(position=st.integers(0, 200), value=st.integers(0, 255), size=st.integers(0, 400))
def test_a_damaged_file_is_read_or_refused_but_never_crashes(
    tmp_path_factory: pytest.TempPathFactory, position: int, value: int, size: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    save_file({"a": torch.ones(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}, path)
    data = bytearray(path.read_bytes())[:size]
    if position < len(data):
        data[position] = value
    path.write_bytes(data)
    with suppress(CheckpointError):
        read_safetensors_header(str(path))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickled_weights_are_never_opened_but_explained(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(CheckpointError, match=rf"{name}: pickled weights.*save_pretrained"):
        SafetensorsCheckpoint(str(tmp_path))


def test_a_directory_without_weights_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"it has no \.safetensors file"):
        SafetensorsCheckpoint(str(tmp_path))


def test_a_directory_without_a_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"it has no config\.json"):
        SafetensorsCheckpoint(str(tmp_path))


def test_the_generation_config_is_read(tmp_path: Path) -> None:
    directory = make_directory(tmp_path, {"w": torch.ones(1)})
    (directory / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    assert SafetensorsCheckpoint(str(directory)).generation_config == {"eos_token_id": [1, 2]}


@pytest.mark.parametrize("model_type", ["gpt2", "bloom"])
def test_names_without_the_class_prefix_get_it(tmp_path: Path, model_type: str) -> None:
    tensors = {"ln_f.weight": torch.ones(2), "lm_head.weight": torch.ones(3)}
    checkpoint = SafetensorsCheckpoint(str(make_directory(tmp_path, tensors, model_type)))
    assert set(checkpoint.tensors) == {"transformer.ln_f.weight", "lm_head.weight"}
    assert torch.equal(checkpoint.read("transformer.ln_f.weight"), torch.ones(2))


def test_the_text_model_is_taken_out_of_one_with_vision(tmp_path: Path) -> None:
    tensors = {
        "language_model.model.norm.weight": torch.ones(2),
        "model.language_model.layers.0.x": torch.ones(3),
        "vision_tower.y": torch.ones(4),
    }
    directory = make_directory(tmp_path, tensors)
    config = {"model_type": "gemma3", "eos_token_id": [1, 106], "text_config": {"hidden_size": 8}}
    (directory / "config.json").write_text(json.dumps(config))
    checkpoint = SafetensorsCheckpoint(str(directory))
    assert set(checkpoint.tensors) == {"model.norm.weight", "model.layers.0.x"}
    assert checkpoint.config == {"model_type": "gemma3_text", "hidden_size": 8, "eos_token_id": [1, 106]}
