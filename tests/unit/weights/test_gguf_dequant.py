"""Dequantised blocks, bit for bit against the `gguf` package."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType

from millpond.inference.weights import gguf_dequant
from millpond.inference.weights.gguf_dequant import dequantise
from millpond.inference.weights.gguf_types import TYPE_OF_CODE, TYPE_OF_NAME
from tests.support.gguf_files import HALF_OFFSETS, quantised


@pytest.mark.parametrize("kind", HALF_OFFSETS, ids=lambda kind: kind.name)
def test_every_bit_pattern_gives_the_reference_numbers(kind: GGMLQuantizationType) -> None:
    blocks, _ = quantised(48, 512, kind)
    ours = dequantise(blocks, TYPE_OF_NAME[kind.name], 512)
    np.testing.assert_array_equal(ours, gguf.dequantize(blocks, kind))


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_quantised_numbers_come_back_close(kind: str) -> None:
    numbers = np.random.default_rng(3).normal(size=(16, 256)).astype(np.float32)
    stored = gguf.quantize(numbers, GGMLQuantizationType[kind])
    step = np.abs(numbers).max() / (100 if kind == "Q8_0" else 6)
    assert np.abs(dequantise(stored, TYPE_OF_NAME[kind], 256) - numbers).max() < step


@pytest.mark.parametrize("kind", HALF_OFFSETS, ids=lambda kind: kind.name)
def test_chunks_on_a_pool_give_the_same_numbers_as_one_chunk(
    kind: GGMLQuantizationType, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks, _ = quantised(64, 512, kind)
    whole = dequantise(blocks, TYPE_OF_NAME[kind.name], 512)
    monkeypatch.setattr(gguf_dequant, "CHUNK_NUMBERS", 1024)
    with ThreadPoolExecutor(2) as pool:
        np.testing.assert_array_equal(dequantise(blocks, TYPE_OF_NAME[kind.name], 512, pool), whole)


def test_no_rows_give_no_numbers() -> None:
    assert dequantise(np.empty((0, 34), np.uint8), TYPE_OF_NAME["Q8_0"], 32).shape == (0, 32)


def test_block_sizes_are_the_formats_own() -> None:
    for code, kind in TYPE_OF_CODE.items():
        assert GGMLQuantizationType(code).name == kind.name
        assert gguf.GGML_QUANT_SIZES[GGMLQuantizationType(code)] == (kind.block_size, kind.type_size)
