"""4-bit blocks in the form of the products, against the numbers that the `gguf` package makes of them."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType

from millpond.base.errors import CheckpointError
from millpond.inference.weights.gguf_checkpoint import GgufCheckpoint
from millpond.inference.weights.gguf_int4 import StoredBlocks, stored_blocks
from millpond.inference.weights.opening import open_checkpoint
from tests.support.gguf_files import convert_model, make_model, model_metadata, quantised, write_gguf
from tests.support.tiny_checkpoints import make_llama_dir

DOWN = "model.layers.0.mlp.down_proj.weight"
Blocks = tuple[np.ndarray, GGMLQuantizationType]


def stored(path: Path, blocks: Blocks) -> StoredBlocks:
    """A model whose down projection holds these blocks."""
    tensors = {"token_embd.weight": np.zeros((8, 64), np.float32), "blk.0.ffn_down.weight": blocks}
    checkpoint = GgufCheckpoint(
        str(write_gguf(path, "llama", tensors, model_metadata("llama", make_model("llama").config)))
    )
    found = stored_blocks(checkpoint)
    assert found is not None
    return found


@pytest.mark.parametrize("kind", [GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q4_1], ids=lambda kind: kind.name)
def test_blocks_of_32_keep_every_number(tmp_path: Path, kind: GGMLQuantizationType) -> None:
    blocks = quantised(40, 768, kind)
    read = stored(tmp_path / "model.gguf", blocks).read_int4(DOWN)
    np.testing.assert_array_equal(read.widen().numpy(), gguf.dequantize(*blocks))


def test_blocks_of_256_keep_every_number_but_for_the_rounding_of_their_scales(tmp_path: Path) -> None:
    blocks = quantised(1100, 512, GGMLQuantizationType.Q4_K)  # more rows than are taken at a time
    read = stored(tmp_path / "model.gguf", blocks).read_int4(DOWN)
    assert read.minimum is not None
    want = gguf.dequantize(*blocks)
    # A half keeps 11 bits of the scale, which is multiplied by at most 15, and as many of the minimum.
    room = (15 * read.scale.float().abs() + read.minimum.float().abs()).numpy() * 2.0**-11 + 1e-6
    assert (np.abs(read.widen().numpy() - want).reshape(1100, 16, 32) <= room[..., None]).all()


def test_rows_come_in_the_original_order(tmp_path: Path) -> None:
    original, kind = quantised(64, 64, GGMLQuantizationType.Q4_0)
    interleaved = original.reshape(4, 2, 8, -1).swapaxes(1, 2).reshape(original.shape)
    tensors = {"token_embd.weight": np.zeros((8, 64), np.float32), "blk.1.attn_q.weight": (interleaved, kind)}
    path = write_gguf(tmp_path / "model.gguf", "llama", tensors, model_metadata("llama", make_model("llama").config))
    read = StoredBlocks(GgufCheckpoint(str(path))).read_int4("model.layers.1.self_attn.q_proj.weight")
    np.testing.assert_array_equal(read.widen().numpy(), gguf.dequantize(original, kind))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("Q4_0", "int4"),
        ("Q4_1", "int4_min"),
        ("Q4_K", "int4_min"),
        ("Q5_0", "other"),
        ("Q6_K", "other"),
        ("Q8_0", "other"),
    ],
)
def test_only_types_of_4_bits_stay_as_they_are(tmp_path: Path, kind: str, expected: str) -> None:
    assert stored(tmp_path / "model.gguf", quantised(32, 256, GGMLQuantizationType[kind])).kind(DOWN) == expected


def test_matrices_that_are_stored_transposed_do_not_stay_as_they_are(tmp_path: Path) -> None:
    path = convert_model(tmp_path / "model.gguf", "gpt2", make_model("gpt2"), kinds=[GGMLQuantizationType.Q4_0])
    blocks = StoredBlocks(GgufCheckpoint(str(path)))
    assert blocks.kind("transformer.h.0.attn.c_attn.weight") == "other"
    assert blocks.kind("transformer.wte.weight") == "int4"
    assert blocks.kind("transformer.ln_f.bias") == "float"


def test_a_scale_that_no_half_holds_is_refused_by_name(tmp_path: Path) -> None:
    blocks, kind = quantised(32, 256, GGMLQuantizationType.Q4_K)
    blocks[3, :2] = np.array([60000], np.float16).view(np.uint8)
    blocks[3, 4] = 63
    with pytest.raises(CheckpointError, match=r"down_proj.*larger than half precision") as caught:
        stored(tmp_path / "model.gguf", (blocks, kind)).read_int4(DOWN)
    assert "model.dtype" in caught.value.fix


def test_a_directory_of_safetensors_has_no_blocks(tmp_path: Path) -> None:
    assert stored_blocks(open_checkpoint(str(make_llama_dir(tmp_path / "tiny")))) is None
