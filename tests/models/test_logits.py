"""Every family's logits against `transformers`, by the torch reference and by the native kernels of every ISA."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from transformers import PreTrainedModel

from millpond.inference.models import build_spec, make_program
from millpond.inference.ops.native import NativeProgram, best_isa
from millpond.inference.ops.native_abi import ISA_NAMES
from millpond.inference.ops.program import Program
from millpond.inference.ops.reference import ReferenceProgram
from tests.support.steps import Run, make_inputs, scattered_blocks
from tests.support.tiny_models import VARIANTS, VOCAB, config_dict, make_model

BLOCK = 32
NUM_BLOCKS = 24
LENGTHS = (150, 37, 1, 64)  # tokens of the four sequences that run together
ISAS = ISA_NAMES[: ISA_NAMES.index(best_isa()) + 1] if best_isa() != "none" else ()


@functools.cache
def oracle(variant: str) -> tuple[PreTrainedModel, list[list[int]], list[torch.Tensor]]:
    model = make_model(variant)
    generator = torch.Generator().manual_seed(7)
    prompts = [torch.randint(3, VOCAB, (n,), generator=generator).tolist() for n in LENGTHS]
    with torch.no_grad():
        logits = [model(torch.tensor([p])).logits[0] for p in prompts]
    return model, prompts, logits


def program_of(model: PreTrainedModel) -> Program:
    state = model.state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    return make_program(build_spec(config_dict(model)), state.__getitem__, shapes, 512)


@contextmanager
def native(program: Program, isa: str, dtype: str = "float32", cache_dtype: str | None = None) -> Iterator[Run]:
    runner = NativeProgram(
        program,
        dtype=dtype,
        cache_dtype=cache_dtype,
        isa=isa,
        num_threads=2,
        num_blocks=NUM_BLOCKS,
        block_size=BLOCK,
        max_tokens=256,
        max_logit_rows=256,
    )
    try:
        yield lambda inputs: runner.run(inputs)[0].clone()
    finally:
        runner.close()


def reference(program: Program, dtype: str = "float32", cache_dtype: str | None = None) -> Run:
    slots = NUM_BLOCKS * BLOCK
    return ReferenceProgram(program, dtype=dtype, num_slots=slots, deterministic=False, cache_dtype=cache_dtype).run


def run_in_chunks(run: Run, prompts: list[list[int]], chunk: int) -> list[torch.Tensor]:
    """All sequences together, `chunk` tokens of each a step, every row's logits."""
    ids = scattered_blocks(NUM_BLOCKS, NUM_BLOCKS, 3)
    blocks = []
    for p in prompts:
        need = -(-len(p) // BLOCK)
        blocks.append([ids.pop() for _ in range(need)])
    got: list[list[torch.Tensor]] = [[] for _ in prompts]
    for first in range(0, max(map(len, prompts)), chunk):
        live = [i for i, p in enumerate(prompts) if len(p) > first]
        parts = [(prompts[i][first : first + chunk], first, blocks[i]) for i in live]
        logits = run(make_inputs(parts, BLOCK, all_logits=True))
        for i, rows in zip(live, logits.split([len(p[0]) for p in parts]), strict=True):
            got[i].append(rows)
    return [torch.cat(rows) for rows in got]


def check_against_oracle(run: Run, variant: str, chunk: int) -> None:
    _, prompts, expected = oracle(variant)
    for got, want in zip(run_in_chunks(run, prompts, chunk), expected, strict=True):
        assert (got - want).abs().max() <= 1e-3
        assert torch.equal(got.argmax(-1), want.argmax(-1))


@pytest.mark.parametrize("chunk", [50, 1])
@pytest.mark.parametrize("variant", VARIANTS)
def test_reference_logits_equal_transformers(variant: str, chunk: int) -> None:
    check_against_oracle(reference(program_of(oracle(variant)[0])), variant, chunk)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_native_float32_logits_equal_transformers(variant: str, isa: str) -> None:
    with native(program_of(oracle(variant)[0]), isa) as run:
        check_against_oracle(run, variant, 50)
        check_against_oracle(run, variant, 1)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "w8a8", "int4"])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_native_low_precision_stays_close_to_its_reference(variant: str, isa: str, dtype: str) -> None:
    model, prompts, _ = oracle(variant)
    expected = run_in_chunks(reference(program_of(model), dtype), prompts, 50)
    with native(program_of(model), isa, dtype) as run:
        for got, want in zip(run_in_chunks(run, prompts, 50), expected, strict=True):
            # Both round activations to bfloat16, at places that differ: compare to the spread of the logits. In w8a8
            # and int4 such a difference can move an activation by a whole step, a 127th of its row's largest.
            assert (got - want).abs().mean() <= (0.03 if dtype in ("w8a8", "int4") else 0.02) * want.std()


@pytest.mark.parametrize("isa", [*ISAS, "reference"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_with_an_int8_cache_stay_close_to_those_with_a_float_cache(variant: str, isa: str) -> None:
    model, prompts, expected = oracle(variant)
    program = program_of(model)
    opened = (
        nullcontext(reference(program, "float32", "int8"))
        if isa == "reference"
        else native(program, isa, "float32", "int8")
    )
    with opened as run:
        for got, want in zip(run_in_chunks(run, prompts, 50), expected, strict=True):
            # Half a step of the scale is 1/254 of a row's largest number, in keys, in values and in queries.
            assert 0 < (got - want).abs().mean() <= 0.015 * want.std()


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_native_low_precision_with_an_int8_cache_stays_close_to_its_reference(
    variant: str, isa: str, dtype: str
) -> None:
    model, prompts, _ = oracle(variant)
    expected = run_in_chunks(reference(program_of(model), dtype, "int8"), prompts, 50)
    with native(program_of(model), isa, dtype, "int8") as run:
        for got, want in zip(run_in_chunks(run, prompts, 50), expected, strict=True):
            assert (got - want).abs().mean() <= 0.02 * want.std()


@pytest.mark.parametrize("cache_dtype", [None, "int8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "w8a8", "int4"])
@pytest.mark.parametrize("isa", ISAS)
def test_native_logits_of_a_row_do_not_depend_on_chunks_or_batch(isa: str, dtype: str, cache_dtype: str | None) -> None:
    model, prompts, _ = oracle("llama")
    with native(program_of(model), isa, dtype, cache_dtype) as run:
        together = run_in_chunks(run, prompts, 50)
        for chunk in (1, 7, 128):
            for i, want in enumerate(together):
                assert torch.equal(run_in_chunks(run, [prompts[i]], chunk)[0], want)


@pytest.mark.parametrize("cache_dtype", [None, "int8"])
def test_reference_in_deterministic_mode_does_not_depend_on_chunks_or_batch(cache_dtype: str | None) -> None:
    model, prompts, _ = oracle("llama")
    slots = NUM_BLOCKS * BLOCK
    runner = ReferenceProgram(
        program_of(model), dtype="float32", num_slots=slots, deterministic=True, cache_dtype=cache_dtype
    )
    together = run_in_chunks(runner.run, prompts[1:], 20)
    for i, want in enumerate(together, 1):
        assert torch.equal(run_in_chunks(runner.run, [prompts[i]], 7)[0], want)


@pytest.mark.parametrize("cache_dtype", [None, "int8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("isa", ISAS)
def test_nan_left_in_a_block_does_not_reach_its_next_owner(isa: str, dtype: str, cache_dtype: str | None) -> None:
    model, prompts, _ = oracle("llama")
    state = dict(model.state_dict())
    poison = 5
    state["model.embed_tokens.weight"] = state["model.embed_tokens.weight"].clone()
    state["model.embed_tokens.weight"][poison] = float("nan")
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    program = make_program(build_spec(config_dict(model)), state.__getitem__, shapes, 512)
    prompt = [t if t != poison else 6 for t in prompts[1]]
    step = make_inputs([(prompt, 0, [0, 1])], BLOCK, all_logits=True)
    with native(program, isa, dtype, cache_dtype) as run:
        want = run(step)
        assert run(make_inputs([([poison] * 64, 0, [0, 1])], BLOCK, all_logits=True)).isnan().all()
        assert torch.equal(run(step), want)
