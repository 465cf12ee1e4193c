"""GGUF models behind the `Checkpoint` face, against the models they were made from and against transformers' loader."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from millpond.base.errors import CheckpointError
from millpond.inference.weights.gguf_checkpoint import GgufCheckpoint
from tests.support.gguf_files import FAMILIES, convert_model, make_model, model_metadata, quantised, write_gguf


@pytest.fixture(scope="module", params=FAMILIES)
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    return request.param, convert_model(path, request.param, make_model(request.param))


@pytest.fixture
def llama_metadata() -> dict[str, object]:
    return model_metadata("llama", make_model("llama").config)


def test_every_tensor_equals_the_model_it_was_converted_from(converted: tuple[str, Path]) -> None:
    family, path = converted
    checkpoint = GgufCheckpoint(str(path))
    expected = {
        name: tensor
        for name, tensor in make_model(family).state_dict().items()
        if not name.endswith((".attn.bias", ".masked_bias"))
    }
    if checkpoint.config["tie_word_embeddings"]:
        del expected["lm_head.weight"]
    assert set(checkpoint.tensors) == set(expected)
    for name, tensor in expected.items():
        assert checkpoint.tensors[name].shape == tuple(tensor.shape)
        torch.testing.assert_close(checkpoint.read(name), tensor, rtol=0, atol=1e-6)  # Gemma: (w + 1) - 1


def test_every_tensor_equals_what_transformers_reads(converted: tuple[str, Path]) -> None:
    family, path = converted
    checkpoint = GgufCheckpoint(str(path))
    like = make_model("llama" if family == "mistral" else family)  # their table of names has no Mistral; it is Llama's
    theirs = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=like)["tensors"]
    common = set(theirs) & set(checkpoint.tensors)
    assert len(common) >= len(checkpoint.tensors) - 1
    for name in common:
        assert torch.equal(checkpoint.read(name), theirs[name]), name


def test_slices_along_both_dimensions_equal_slices_of_the_whole(converted: tuple[str, Path]) -> None:
    checkpoint = GgufCheckpoint(str(converted[1]))
    for name, info in checkpoint.tensors.items():
        whole = checkpoint.read(name)
        for dim, extent in enumerate(info.shape):
            start, stop = extent // 4, extent // 4 + extent // 2
            part = checkpoint.read(name, start=start, stop=stop, dim=dim)
            assert torch.equal(part, whole.narrow(dim, start, stop - start)), (name, dim)
            assert part.is_contiguous()


@pytest.mark.parametrize("kind", [GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q8_0])
def test_quantised_query_rows_come_in_the_original_order(
    tmp_path: Path, kind: GGMLQuantizationType, llama_metadata: dict[str, object]
) -> None:
    original = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    interleaved = original.reshape(4, 2, 8, 64).swapaxes(1, 2).reshape(64, 64)
    stored = gguf.quantize(interleaved, kind)
    path = write_gguf(
        tmp_path / "model.gguf",
        "llama",
        {"token_embd.weight": original, "blk.0.attn_q.weight": (stored, kind)},
        llama_metadata,
    )
    expected = gguf.dequantize(gguf.quantize(original, kind), kind)
    read = GgufCheckpoint(str(path)).read("model.layers.0.self_attn.q_proj.weight", start=8, stop=40)
    np.testing.assert_array_equal(read.numpy(), expected[8:40])


@pytest.mark.parametrize("dim", [0, 1])
def test_slices_of_quantised_tensors_need_no_block_boundary(
    tmp_path: Path, dim: int, llama_metadata: dict[str, object]
) -> None:
    blocks, kind = quantised(40, 768, GGMLQuantizationType.Q4_K)
    path = write_gguf(
        tmp_path / "model.gguf",
        "llama",
        {"token_embd.weight": np.zeros((8, 64), np.float32), "blk.0.ffn_down.weight": (blocks, kind)},
        llama_metadata,
    )
    whole = gguf.dequantize(blocks, kind)
    read = GgufCheckpoint(str(path)).read("model.layers.0.mlp.down_proj.weight", start=5, stop=33, dim=dim)
    np.testing.assert_array_equal(read.numpy(), whole[5:33] if dim == 0 else whole[:, 5:33])


def test_raw_rows_are_the_stored_blocks_in_the_original_row_order(
    tmp_path: Path, llama_metadata: dict[str, object]
) -> None:
    original, kind = quantised(64, 64, GGMLQuantizationType.Q4_0)
    interleaved = original.reshape(4, 2, 8, -1).swapaxes(1, 2).reshape(original.shape)
    path = write_gguf(
        tmp_path / "model.gguf",
        "llama",
        {"token_embd.weight": np.zeros((8, 64), np.float32), "blk.1.attn_q.weight": (interleaved, kind)},
        llama_metadata,
    )
    checkpoint = GgufCheckpoint(str(path))
    raw = checkpoint.read_raw("model.layers.1.self_attn.q_proj.weight", start=3, stop=50)
    np.testing.assert_array_equal(raw.numpy(), original[3:50])


def test_transposed_tensors_are_not_given_raw(tmp_path: Path) -> None:
    path = convert_model(tmp_path / "model.gguf", "gpt2", make_model("gpt2"))
    with pytest.raises(CheckpointError, match=r"c_attn\.weight'.*transposed"):
        GgufCheckpoint(str(path)).read_raw("transformer.h.0.attn.c_attn.weight")


@pytest.mark.parametrize(("dtype", "expected"), [("F16", torch.float16), ("BF16", torch.bfloat16)])
def test_half_precision_tensors_keep_their_type(
    tmp_path: Path, dtype: str, expected: torch.dtype, llama_metadata: dict[str, object]
) -> None:
    numbers = np.random.default_rng(1).normal(size=(16, 64)).astype(np.float32)
    kind = GGMLQuantizationType[dtype]
    path = write_gguf(
        tmp_path / "model.gguf", "llama", {"token_embd.weight": (gguf.quantize(numbers, kind), kind)}, llama_metadata
    )
    read = GgufCheckpoint(str(path)).read("model.embed_tokens.weight")
    assert torch.equal(read, torch.from_numpy(numbers).to(expected))


def test_a_split_model_is_read_from_all_its_files(tmp_path: Path, llama_metadata: dict[str, object]) -> None:
    first, second = np.ones((8, 64), np.float32), np.full(64, 2.0, np.float32)
    names = [tmp_path / f"tiny-0000{number}-of-00002.gguf" for number in (1, 2)]
    facts = {**llama_metadata, "split.count": 2}
    write_gguf(names[0], "llama", {"token_embd.weight": first}, facts)
    write_gguf(names[1], "llama", {"output_norm.weight": second}, {"split.count": 2})
    checkpoint = GgufCheckpoint(str(names[0]))
    assert torch.equal(checkpoint.read("model.norm.weight"), torch.from_numpy(second))
    assert torch.equal(checkpoint.read("model.embed_tokens.weight"), torch.from_numpy(first))


def test_a_missing_part_of_a_split_model_is_named(tmp_path: Path, llama_metadata: dict[str, object]) -> None:
    path = tmp_path / "tiny-00001-of-00002.gguf"
    write_gguf(path, "llama", {"token_embd.weight": np.ones((8, 64), np.float32)}, {**llama_metadata, "split.count": 2})
    with pytest.raises(CheckpointError, match=r"tiny-00002-of-00002\.gguf.*missing"):
        GgufCheckpoint(str(path))


def test_an_unknown_tensor_is_named(tmp_path: Path, llama_metadata: dict[str, object]) -> None:
    tensors = {"token_embd.weight": np.ones((8, 64), np.float32), "blk.0.attn_sinks.weight": np.ones(4, np.float32)}
    path = write_gguf(tmp_path / "model.gguf", "llama", tensors, llama_metadata)
    with pytest.raises(CheckpointError, match=r"model\.gguf: tensor 'blk\.0\.attn_sinks\.weight': it is not known"):
        GgufCheckpoint(str(path))


def test_query_rows_that_make_no_heads_are_named(tmp_path: Path, llama_metadata: dict[str, object]) -> None:
    tensors = {"token_embd.weight": np.ones((8, 64), np.float32), "blk.0.attn_q.weight": np.ones((60, 64), np.float32)}
    path = write_gguf(tmp_path / "model.gguf", "llama", tensors, llama_metadata)
    with pytest.raises(CheckpointError, match=r"attn_q\.weight': its 60 rows are not 1 x 4 heads of 16"):
        GgufCheckpoint(str(path))


def test_a_tensor_that_is_not_there_is_named(tmp_path: Path, llama_metadata: dict[str, object]) -> None:
    path = write_gguf(
        tmp_path / "model.gguf", "llama", {"token_embd.weight": np.ones((8, 64), np.float32)}, llama_metadata
    )
    with pytest.raises(CheckpointError, match=r"tensor 'model\.norm\.weight': there is no tensor of that name"):
        GgufCheckpoint(str(path)).read("model.norm.weight")


def test_a_slice_outside_the_tensor_is_refused(tmp_path: Path, llama_metadata: dict[str, object]) -> None:
    path = write_gguf(
        tmp_path / "model.gguf", "llama", {"token_embd.weight": np.ones((8, 64), np.float32)}, llama_metadata
    )
    with pytest.raises(ValueError, match=r"\[4:9\] is not in it"):
        GgufCheckpoint(str(path)).read("model.embed_tokens.weight", start=4, stop=9)


def test_tensors_outlive_the_checkpoint_they_came_from(tmp_path: Path, llama_metadata: dict[str, object]) -> None:
    path = write_gguf(
        tmp_path / "model.gguf", "llama", {"token_embd.weight": np.ones((8, 64), np.float32)}, llama_metadata
    )
    checkpoint = GgufCheckpoint(str(path))
    tensor = checkpoint.read("model.embed_tokens.weight")
    checkpoint.close()
    assert tensor.sum().item() == 8 * 64
