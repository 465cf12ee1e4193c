"""4-bit weights: the quantiser, the choice of matrices, products of every kind of GGUF block, and whole models."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType

from millpond.inference.models import build_spec, make_program
from millpond.inference.ops.int4 import Int4Weight, choose_form, quantise_groups, quantise_int4
from millpond.inference.ops.program import Buffer, Embed, Linear, Op, Program, Weight
from millpond.inference.weights.gguf_checkpoint import GgufCheckpoint
from millpond.inference.weights.gguf_int4 import StoredBlocks
from tests.models.test_logits import native, reference, run_in_chunks
from tests.ops.test_ops import BLOCK, DIM, GROUPS, HEADS, ISAS, NUM_BLOCKS, rows_step, weight
from tests.support.gguf_files import convert_model, make_model, model_metadata, write_gguf
from tests.support.steps import make_inputs

from millpond.inference.ops.native import NativeProgram  # isort: skip

DOWN = "model.layers.0.mlp.down_proj.weight"
KINDS = (GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q4_1, GGMLQuantizationType.Q4_K)


def stored_matrix(path: Path, rows: int, columns: int, kind: GGMLQuantizationType) -> tuple[StoredBlocks, np.ndarray]:
    """A file with one matrix of random blocks, and its numbers by the `gguf` package."""
    rng = np.random.default_rng(5)
    if kind == GGMLQuantizationType.Q4_K:  # which that package cannot make: any bits are blocks, but for two halves
        blocks = rng.integers(0, 256, (rows, columns // 256 * 144), np.uint8)
        halves = rng.uniform(1e-4, 1e-3, (rows, columns // 256, 2)).astype(np.float16)
        blocks.reshape(rows, -1, 144)[:, :, :4] = halves.view(np.uint8).reshape(rows, -1, 4)
    else:
        blocks = gguf.quantize(rng.normal(0, 0.05, (rows, columns)).astype(np.float32), kind)
    tensors = {"token_embd.weight": np.zeros((8, 64), np.float32), "blk.0.ffn_down.weight": (blocks, kind)}
    write_gguf(path, "llama", tensors, model_metadata("llama", make_model("llama").config))
    return StoredBlocks(GgufCheckpoint(str(path))), gguf.dequantize(blocks, kind)


def refuse() -> torch.Tensor:
    raise AssertionError("a matrix that is stored in 4 bits was widened")


def stored_weight(rows: int, columns: int) -> Weight:
    return Weight(DOWN, (rows, columns), refuse, ((DOWN, (rows, columns)),), itemgetter(0))


def make_native(program: Program, isa: str) -> NativeProgram:
    return NativeProgram(
        program,
        dtype="int4",
        isa=isa,
        num_threads=2,
        num_blocks=NUM_BLOCKS,
        block_size=BLOCK,
        max_tokens=256,
        max_logit_rows=256,
    )


def program_of(ops: Sequence[Op], buffers: Sequence[Buffer], out: Buffer, stored: StoredBlocks) -> Program:
    return Program(tuple(ops), out, 1, HEADS, GROUPS, DIM, 64, 512, tuple(buffers), stored)


def product(stored: StoredBlocks, shape: tuple[int, int], x: torch.Tensor, isa: str) -> torch.Tensor:
    """x times a stored matrix."""
    outputs, inputs = shape
    source, out = Buffer("in", inputs, "act"), Buffer("out", outputs, "f32")
    op = Linear(source, out, stored_weight(outputs, inputs), None, "store_f32")
    runner = make_native(program_of([op], [source, out], out, stored), isa)
    runner.view(source)[: len(x)] = x.to(torch.bfloat16)
    runner.run(rows_step(len(x)))
    got = runner.view(out)[: len(x)].clone()
    runner.close()
    return got


def whole_numbers(rows: int, columns: int) -> torch.Tensor:
    """Activations that int8 by groups holds exactly: whole numbers, each group's largest of them 127."""
    x = torch.randint(-127, 128, (rows, columns), generator=torch.Generator().manual_seed(2)).float()
    x[:, ::32] = 127.0
    return x


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 20, 64])
def test_a_product_of_stored_blocks_equals_the_one_of_their_numbers(
    rows: int, kind: GGMLQuantizationType, isa: str, tmp_path: Path
) -> None:
    stored, numbers = stored_matrix(tmp_path / "model.gguf", 100, 768, kind)
    x = whole_numbers(rows, 768)
    want = x.double() @ torch.from_numpy(numbers).double().T
    error = (product(stored, (100, 768), x, isa).double() - want).abs().max()
    assert error <= (5e-4 if kind == GGMLQuantizationType.Q4_K else 2e-6) * want.abs().max()  # scales as halves


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_instruction_set_and_number_of_rows_gives_the_same_bits(
    kind: GGMLQuantizationType, tmp_path: Path
) -> None:
    stored, _ = stored_matrix(tmp_path / "model.gguf", 100, 1280, kind)
    x = torch.randn(150, 1280, generator=torch.Generator().manual_seed(4))
    whole = product(stored, (100, 1280), x, ISAS[0])
    for isa in ISAS:
        for rows in (1, 3, 4, 6, 16, 33, 150):
            assert torch.equal(product(stored, (100, 1280), x[:rows], isa), whole[:rows]), (isa, rows)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rows", [3, 20])
def test_a_hostile_activation_stays_in_its_row(rows: int, isa: str, tmp_path: Path) -> None:
    stored, _ = stored_matrix(tmp_path / "model.gguf", 64, 64, GGMLQuantizationType.Q4_1)
    x = torch.randn(rows, 64, generator=torch.Generator().manual_seed(6))
    calm = product(stored, (64, 64), x, isa)
    for value in (float("inf"), float("-inf"), float("nan")):
        x[2, 40] = value
        got = product(stored, (64, 64), x, isa)
        assert got[2].isnan().all()
        assert torch.equal(got[:2], calm[:2])
        assert torch.equal(got[3:], calm[3:])
    for value in (1e-42, 1e36):
        x[2, 40] = value
        got = product(stored, (64, 64), x, isa)
        assert got[2].isfinite().all()
        assert torch.equal(got[:2], calm[:2])
    x[2] = 0.0
    assert (product(stored, (64, 64), x, isa)[2] == 0).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", [GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q4_1], ids=lambda kind: kind.name)
def test_an_embedding_of_stored_blocks_gives_their_numbers(
    kind: GGMLQuantizationType, isa: str, tmp_path: Path
) -> None:
    stored, numbers = stored_matrix(tmp_path / "model.gguf", 70, 96, kind)
    out = Buffer("out", 96, "f32")
    runner = make_native(program_of([Embed(out, stored_weight(70, 96))], [out], out, stored), isa)
    ids = [i * 7 % 70 for i in range(40)]
    runner.run(make_inputs([(ids, 0, [0, 1])], BLOCK, all_logits=True))
    np.testing.assert_array_equal(runner.view(out)[:40].numpy(), numbers[ids])
    runner.close()


def test_the_quantiser_takes_the_scale_of_q4_0_and_the_nearest_number() -> None:
    numbers = torch.randn(300, 100, generator=torch.Generator().manual_seed(1))
    made = quantise_int4(numbers)
    padded = torch.nn.functional.pad(numbers, (0, 28))
    theirs = gguf.quantize(padded.numpy(), GGMLQuantizationType.Q4_0).reshape(300, 4, 18)
    np.testing.assert_array_equal(made.scale.numpy().view(np.uint8).reshape(300, 4, 2), theirs[..., :2])
    error = (made.widen() - padded).view(300, 4, 32).abs()
    step = made.scale.float().abs()[..., None]
    inside = (padded.view(300, 4, 32) / made.scale.float()[..., None]) <= 7.5  # -8 to 7: one end is cut
    assert (error[inside] <= (step.expand_as(error)[inside] * 0.5001)).all()
    assert (made.widen() - padded).square().mean() <= 1.01 * np.square(
        gguf.dequantize(theirs.reshape(300, -1), GGMLQuantizationType.Q4_0) - padded.numpy()
    ).mean()


def test_the_quantiser_survives_extremes() -> None:
    numbers = torch.zeros(4, 32)
    numbers[1, 5], numbers[2, 6], numbers[3, 7] = 1e-9, 1e30, -2.0
    widened = quantise_int4(numbers).widen()
    assert (widened[:2] == 0).all()
    assert widened[2].isfinite().all()
    assert widened[3, 7] == -2.0


def test_activations_by_groups_keep_small_groups_beside_large_ones() -> None:
    x = torch.cat([torch.full((1, 32), 1e-3), torch.full((1, 32), 100.0), torch.zeros(1, 16)], dim=1)
    torch.testing.assert_close(quantise_groups(x)[:, :80], x)


def test_floats_become_4_bits_but_for_embedding_and_logits() -> None:
    source, x, logits = Buffer("in", 64, "act"), Buffer("x", 64, "f32"), Buffer("logits", 64, "f32", "logit")
    table, inner, head = weight(64, 64, seed=1), weight(64, 64, seed=2), weight(64, 64, seed=3)
    ops = (
        Embed(x, table),
        Linear(source, x, inner, None, "store_f32"),
        Linear(source, logits, head, None, "store_f32"),
    )
    program = Program(ops, logits, 1, HEADS, GROUPS, DIM, 64, 512, (source, x, logits))
    assert [choose_form(program, w) for w in (table, inner, head)] == ["int8", "make_int4", "int8"]


def test_rows_can_be_arranged() -> None:
    made = quantise_int4(torch.randn(6, 64))
    order = torch.tensor([4, 0, 0])
    for value in (made, Int4Weight(made.bits, made.scale, made.scale * 3)):
        assert torch.equal(value.rows(order), value.widen()[order])


MIXES = {
    "Q4_0": [GGMLQuantizationType.Q4_0],
    "Q4_1": [GGMLQuantizationType.Q4_1],
    "mixed": [
        GGMLQuantizationType.Q8_0,
        GGMLQuantizationType.Q4_0,
        GGMLQuantizationType.Q4_1,
        GGMLQuantizationType.Q5_0,
    ],
}


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_logits_of_a_4_bit_file_stay_close_to_transformers_with_its_numbers(
    family: str, mix: str, tmp_path: Path
) -> None:
    changes = {"num_attention_heads": 2, "num_key_value_heads": 1} if family == "llama" else {}
    model = make_model(family, **changes)
    path = convert_model(tmp_path / "model.gguf", family, model, kinds=MIXES[mix])
    checkpoint = GgufCheckpoint(str(path))
    model.load_state_dict({name: checkpoint.read(name) for name in checkpoint.tensors}, strict=False)
    model.tie_weights()
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    program = make_program(build_spec(checkpoint.config), checkpoint.read, shapes, 256, StoredBlocks(checkpoint))
    prompts = [torch.randint(3, 80, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (60, 9, 1)]
    with torch.no_grad():
        expected = [model(torch.tensor([p])).logits[0] for p in prompts]
    for isa in (*ISAS, None):
        runs = [run_in_chunks(reference(program, "int4"), prompts, 50)]
        if isa is not None:
            with native(program, isa, "int4") as run:
                runs = [run_in_chunks(run, prompts, chunk) for chunk in (50, 1)]
        for got in runs:
            for ours, want in zip(got, expected, strict=True):
                assert (ours - want).abs().mean() <= 0.03 * want.std()
