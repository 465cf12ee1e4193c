"""Guesses on real models: the same tokens with and without, on the reference and on the native executor."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from millpond import LLM, SamplingParams
from millpond.api.request import GrammarSpec
from millpond.base.errors import ConfigError
from millpond.inference.engine import loading
from millpond.inference.ops.native import best_isa
from tests.support.guessing import EagerPolicy
from tests.support.tiny_directory import write_model
from tests.support.tiny_models import VOCAB, make_model

NATIVE = [("native", dtype) for dtype in ("float32", "bfloat16", "int8")] if best_isa() != "none" else []
ENGINES = [("reference", "float32"), *NATIVE]
STEM = [random.Random(5).randrange(3, VOCAB) for _ in range(40)]
PROMPTS = [STEM + STEM[: 7 * i % 40] for i in range(6)] + [[9] * 12, [3, 4] * 20]
REPEATS = {9: 3.0, 11: 3.0, 12: 2.5}  # tokens that are said again and again, so that guesses are sometimes right
KINDS = [
    SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True, logit_bias=REPEATS),
    SamplingParams(temperature=0.7, seed=3, max_tokens=30, ignore_eos=True, logit_bias=REPEATS),
    SamplingParams(temperature=0.9, seed=4, top_p=0.8, n=2, max_tokens=30, logprobs=1, logit_bias=REPEATS),
    SamplingParams(temperature=0.0, max_tokens=30, repetition_penalty=1.1, min_tokens=20, logit_bias=REPEATS),
]
Answers = list[list[tuple[list[int], str, str | None]]]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    model = make_model("llama")
    model.lm_head.weight.data *= 4
    return write_model(tmp_path_factory.mktemp("llama"), model)


@pytest.fixture(params=ENGINES, ids="-".join)
def engines(request: pytest.FixtureRequest, path: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[LLM, LLM]]:
    """One engine that never guesses, one that always does."""
    executor, dtype = request.param
    monkeypatch.setattr(loading, "SpeculationPolicy", EagerPolicy)
    settings = {"executor": executor, "dtype": dtype, "deterministic": True, "threads": 1, "block_size": 32}
    with (
        LLM(path, **settings, cache_bytes="16MiB", speculation_mode="off") as plain,
        LLM(path, **settings, cache_bytes="16MiB", speculation_mode="ngram") as guessing,
    ):
        yield plain, guessing


def answers(llm: LLM, params: list[SamplingParams]) -> Answers:
    results = llm.generate(PROMPTS, params, use_tqdm=False)
    llm._core.scheduler.check_integrity()
    return [[(list(o.token_ids), o.text, o.finish_reason) for o in result.outputs] for result in results]


def test_tokens_are_the_same_with_and_without_guesses(engines: tuple[LLM, LLM]) -> None:
    plain, guessing = engines
    params = [KINDS[i % len(KINDS)] for i in range(len(PROMPTS))]
    assert answers(guessing, params) == answers(plain, params)
    assert plain.stats.draft_tokens_total == 0
    assert guessing.stats.accepted_draft_tokens_total > 20
    assert guessing.stats.draft_tokens_total > guessing.stats.accepted_draft_tokens_total


def test_stop_strings_and_grammars_work_with_guesses(engines: tuple[LLM, LLM]) -> None:
    plain, guessing = engines
    text = plain.generate([PROMPTS[6]], KINDS[0], use_tqdm=False)[0].outputs[0].text
    params = [
        SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True, logit_bias=REPEATS, stop=(text[6:9],)),
        SamplingParams(temperature=0.0, max_tokens=30, grammar=GrammarSpec("regex", "(ab|abc){4,9}")),
    ] * (len(PROMPTS) // 2)
    assert answers(guessing, params) == answers(plain, params)
    assert guessing.stats.accepted_draft_tokens_total > 0


@pytest.fixture(scope="module")
def draft_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The model with noise on its parameters: often of the same opinion."""
    model = make_model("llama")
    model.lm_head.weight.data *= 4
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 0.05 * torch.randn_like(parameter))
    return write_model(tmp_path_factory.mktemp("draft"), model)


@pytest.mark.parametrize(("executor", "dtype"), ENGINES)
def test_tokens_are_the_same_with_a_draft_model(
    path: str, draft_path: str, executor: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "SpeculationPolicy", EagerPolicy)
    settings = {"executor": executor, "dtype": dtype, "deterministic": True, "threads": 1, "block_size": 32}
    settings |= {"cache_bytes": "16MiB", "seed": 7}
    params = [KINDS[i % len(KINDS)] for i in range(len(PROMPTS))]
    unseeded = [SamplingParams(temperature=0.8, max_tokens=20)] * len(PROMPTS)  # runtime.seed fixes these too
    with LLM(path, **settings, speculation_mode="off") as plain:
        expected = [answers(plain, params), answers(plain, unseeded)]
    with LLM(path, **settings, draft_model=draft_path, speculation_max_tokens=4) as guessing:
        assert [answers(guessing, params), answers(guessing, unseeded)] == expected
        stats = guessing.stats
        assert stats.draft_tokens_total > stats.accepted_draft_tokens_total > 100  # the draft knows no biases


def test_a_draft_model_keeps_or_replaces_where_no_seed_was_asked_for(path: str, draft_path: str) -> None:
    with LLM(path, dtype="float32", threads=1, cache_bytes="4MiB", draft_model=draft_path) as llm:
        result = llm.generate([PROMPTS[0]], SamplingParams(max_tokens=60, ignore_eos=True), use_tqdm=False)[0]
        assert len(result.outputs[0].token_ids) == 60
        llm._core.scheduler.check_integrity()


def test_a_draft_model_with_another_vocabulary_is_refused(path: str, tmp_path: Path) -> None:
    other = write_model(tmp_path, make_model("llama"))
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    first, second = sorted(vocab, key=vocab.__getitem__)[70:72]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigError, match="another vocabulary"):
        LLM(path, threads=1, cache_bytes="4MiB", draft_model=other)
