"""A request's tokens do not depend on what else the engine does: deterministic mode, on the real executors.

The same request alone, among 31 others, in chunks, after a prefix hit and after a preemption. Sampled with a seed as
well as greedy, since a draw shows differences that an argmax hides.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from millpond import LLM, SamplingParams
from millpond.inference.ops.native import best_isa
from tests.support.tiny_directory import write_model
from tests.support.tiny_models import VOCAB, make_model

# Of the model and of its cache.
DTYPES = [(dtype, "auto") for dtype in ("float32", "bfloat16", "int8", "w8a8", "int4")] + [
    ("bfloat16", "int8"),
    ("w8a8", "bfloat16"),
]
NATIVE = [("native", *dtypes) for dtypes in DTYPES] if best_isa() != "none" else []
ENGINES = NATIVE or [("reference", "float32", "auto")]  # the reference computes row by row here, and takes minutes
CHOICES = [
    SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True),
    SamplingParams(temperature=1.0, seed=11, max_tokens=40, ignore_eos=True),
]


def prompt(seed: int, length: int) -> list[int]:
    return [random.Random(seed).randrange(3, VOCAB) for _ in range(length)]


PROMPT = prompt(0, 150)
OTHERS = [prompt(i, 3 + 11 * i % 90) for i in range(1, 32)]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("llama"), make_model("llama"))


@pytest.fixture(scope="module", params=ENGINES, ids="-".join)
def engine(request: pytest.FixtureRequest, path: str) -> Iterator[tuple[LLM, dict[str, object]]]:
    """An engine with room for everything, and the settings that it was made with."""
    executor, dtype, cache_dtype = request.param
    settings = {"executor": executor, "dtype": dtype, "deterministic": True, "threads": 2, "block_size": 32}
    settings["cache_dtype"] = cache_dtype
    with LLM(path, **settings, cache_bytes="16MiB", prefix=False, max_batch_tokens=512) as llm:
        yield llm, settings


@pytest.fixture(scope="module")
def alone(engine: tuple[LLM, dict[str, object]]) -> list[list[int]]:
    """The tokens of each choice with nothing else in the engine."""
    return [run(engine[0], [PROMPT], params)[0] for params in CHOICES]


def run(llm: LLM, prompts: list[list[int]], params: SamplingParams) -> list[list[int]]:
    return [result.outputs[0].token_ids for result in llm.generate(prompts, params, use_tqdm=False)]


def test_among_thirty_one_others(engine: tuple[LLM, dict[str, object]], alone: list[list[int]]) -> None:
    for params, expected in zip(CHOICES, alone, strict=True):
        assert run(engine[0], [*OTHERS[:16], PROMPT, *OTHERS[16:]], params)[16] == expected


def test_in_chunks(engine: tuple[LLM, dict[str, object]], alone: list[list[int]], path: str) -> None:
    with LLM(path, **engine[1], cache_bytes="4MiB", max_batch_tokens=23, max_sequences=4) as llm:
        for params, expected in zip(CHOICES, alone, strict=True):
            assert run(llm, [PROMPT], params) == [expected]
        assert llm.stats.steps_total + llm.stats.accepted_draft_tokens_total > 2 * 40


def test_after_a_prefix_hit(engine: tuple[LLM, dict[str, object]], alone: list[list[int]], path: str) -> None:
    with LLM(path, **engine[1], cache_bytes="4MiB") as llm:
        run(llm, [PROMPT[:100]], CHOICES[0])
        for params, expected in zip(CHOICES, alone, strict=True):
            (result,) = llm.generate([PROMPT], params, use_tqdm=False)
            assert result.num_cached_tokens >= 96
            assert result.outputs[0].token_ids == expected


def test_after_a_preemption(engine: tuple[LLM, dict[str, object]], alone: list[list[int]], path: str) -> None:
    llm, settings = engine
    block_bytes = llm.info.cache_bytes // llm.info.num_blocks
    growing = SamplingParams(temperature=0.0, max_tokens=100, ignore_eos=True)
    with LLM(path, **settings, cache_bytes=11 * block_bytes, max_len=320, prefix=False) as small:
        for params, expected in zip(CHOICES, alone, strict=True):
            before = small.stats.preemptions_total
            prompts = [*(prompt(90 + i, 20) for i in range(3)), PROMPT]  # the last to come is the first to go
            results = small.generate(prompts, [growing, growing, growing, params], use_tqdm=False)
            assert small.stats.preemptions_total > before
            assert results[3].outputs[0].token_ids == expected


def test_after_other_work(engine: tuple[LLM, dict[str, object]], alone: list[list[int]], path: str) -> None:
    for params, expected in zip(CHOICES, alone, strict=True):
        assert run(engine[0], [PROMPT], params) == [expected]
