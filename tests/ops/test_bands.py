"""Long steps in bands, and a last layer that computes logit rows alone: the bits stay what they are."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch

from millpond.inference.models import build_spec, make_program
from millpond.inference.ops.native import NativeProgram, best_isa
from millpond.inference.ops.native_abi import ISA_NAMES
from millpond.inference.ops.program import Program
from tests.support.steps import make_inputs
from tests.support.tiny_models import VOCAB, config_dict, make_model

BLOCK = 32
LENGTHS = (500, 301, 130)  # together no multiple of 32 rows, and more than one band a thread
NUM_BLOCKS = sum(-(-length // BLOCK) for length in LENGTHS)
ISAS = ISA_NAMES[: ISA_NAMES.index(best_isa()) + 1] if best_isa() != "none" else ()
DTYPES = [("float32", None), ("bfloat16", None), ("int8", None), ("w8a8", "int8"), ("int4", None)]


@functools.cache
def program_of(variant: str) -> Program:
    model = make_model(variant)
    state = model.state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    return make_program(build_spec(config_dict(model)), state.__getitem__, shapes, 512)


def native(variant: str, isa: str, dtype: str, cache_dtype: str | None, threads: int) -> NativeProgram:
    return NativeProgram(
        program_of(variant),
        dtype=dtype,
        cache_dtype=cache_dtype,
        isa=isa,
        num_threads=threads,
        num_blocks=NUM_BLOCKS,
        block_size=BLOCK,
        max_tokens=1024,
        max_logit_rows=1024,
    )


def make_prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(3, VOCAB, (length,), generator=generator).tolist() for length in LENGTHS]


def logits_of(runner: NativeProgram, chunk: int, *, all_logits: bool) -> list[torch.Tensor]:
    """The logits of each sequence's rows, or of its last row, computed `chunk` tokens of each sequence a step."""
    prompts = make_prompts()
    got: list[list[torch.Tensor]] = [[] for _ in prompts]
    for first in range(0, max(LENGTHS), chunk):
        parts, live, block = [], [], 0
        for i, prompt in enumerate(prompts):
            count = -(-len(prompt) // BLOCK)
            if len(prompt) > first:
                parts.append((prompt[first : first + chunk], first, list(range(block, block + count))))
                live.append(i)
            block += count
        rows = [len(ids) if all_logits else 1 for ids, _, _ in parts]
        logits = runner.run(make_inputs(parts, BLOCK, all_logits=all_logits))[0].clone()
        for i, piece in zip(live, logits.split(rows), strict=True):
            got[i].append(piece)
    return [torch.cat(pieces) if all_logits else pieces[-1] for pieces in got]


@pytest.mark.parametrize(("dtype", "cache_dtype"), DTYPES)
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("variant", "threads"), [("llama", 2), ("gemma3", 3), ("bloom", 1)])
def test_a_long_step_has_the_bits_of_short_ones(
    variant: str, threads: int, isa: str, dtype: str, cache_dtype: str | None
) -> None:
    runner = native(variant, isa, dtype, cache_dtype, threads)
    long = logits_of(runner, max(LENGTHS), all_logits=True)
    short = logits_of(runner, 40, all_logits=True)  # of 120 rows at most: no bands
    runner.close()
    assert all(torch.equal(a, b) for a, b in zip(long, short, strict=True))


@pytest.mark.parametrize("count", [129, 300])
def test_more_threads_than_rows_keep_busy_change_nothing(count: int) -> None:
    inputs = make_inputs([(make_prompts()[0][:count], 0, list(range(NUM_BLOCKS)))], BLOCK, all_logits=True)
    got = []
    for threads in (1, 13):
        runner = native("llama", best_isa(), "w8a8", "int8", threads)
        got.append(runner.run(inputs)[0].clone())
        runner.close()
    assert torch.equal(*got)


@pytest.mark.parametrize(("dtype", "cache_dtype"), DTYPES)
@pytest.mark.parametrize("chunk", [max(LENGTHS), 70])
def test_logits_of_last_rows_alone_are_those_among_all_rows(chunk: int, dtype: str, cache_dtype: str | None) -> None:
    runner = native("llama", best_isa(), dtype, cache_dtype, threads=2)
    everything = logits_of(runner, chunk, all_logits=True)
    last = logits_of(runner, chunk, all_logits=False)
    runner.close()
    assert all(torch.equal(a[-1:], b) for a, b in zip(everything, last, strict=True))


@pytest.mark.parametrize(("dtype", "cache_dtype"), DTYPES)
@pytest.mark.parametrize("isa", ISAS)
def test_parts_of_a_prompt_need_no_logit_row(isa: str, dtype: str, cache_dtype: str | None) -> None:
    runner = native("llama", isa, dtype, cache_dtype, threads=2)
    prompt, blocks = make_prompts()[0], list(range(NUM_BLOCKS))
    whole = runner.run(make_inputs([(prompt, 0, blocks)], BLOCK, all_logits=False))[0].clone()
    for first, last in [(0, 300), (300, 470)]:
        inputs = make_inputs([(prompt[first:last], first, blocks)], BLOCK, all_logits=False)
        assert runner.run(replace(inputs, logit_rows=inputs.logit_rows[:0]))[0].shape == (0, VOCAB)
    in_parts = runner.run(make_inputs([(prompt[470:], 470, blocks)], BLOCK, all_logits=False))[0].clone()
    runner.close()
    assert torch.equal(whole, in_parts)
