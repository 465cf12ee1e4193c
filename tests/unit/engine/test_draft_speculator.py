"""A draft model beside the engine: another fake executor, whose cache must hold exactly what it is asked about."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from millpond.api.request import Request
from millpond.inference.engine.core import EngineCore
from millpond.inference.engine.draft_model import DraftLimits, DraftModel
from millpond.inference.engine.draft_speculator import DraftSpeculator
from millpond.inference.ops.inputs import StepInputs
from millpond.inference.sched.speculation import SpeculationPolicy
from tests.support.fake_executor import FakeExecutor, expected_tokens, make_config, make_core
from tests.support.guessing import EagerPolicy
from tests.unit.engine.test_speculator import params, prompt, run, summary


class WorseExecutor(FakeExecutor):
    """The same model, but in a part of the places it is sure of something else."""

    def __init__(self, *, num_blocks: int, wrong: int) -> None:
        super().__init__(num_blocks=num_blocks, block_size=8)
        self._wrong = wrong  # in ten

    def execute(self, inputs: StepInputs, *, wants_sums: bool = False) -> np.ndarray:
        logits = super().execute(inputs, wants_sums=wants_sums)
        for row, token_row in zip(logits, inputs.logit_rows.tolist(), strict=True):
            if int(inputs.positions[token_row]) * 7 % 10 < self._wrong:
                row[:] = np.roll(row, 1)
        return logits


def make_pair(
    *, num_draft_blocks: int = 64, wrong: int = 3, policy: SpeculationPolicy | None = None, **config: object
) -> tuple[EngineCore, WorseExecutor, DraftModel]:
    """A core with a draft model."""
    resolved = make_config(**config)
    core, _ = make_core(resolved)
    executor = WorseExecutor(num_blocks=num_draft_blocks, wrong=wrong)
    limits = DraftLimits(resolved.max_batch_tokens, resolved.max_sequences, resolved.max_model_len)
    model = DraftModel(executor, limits, core._sampler)  # type: ignore[arg-type]
    core._speculator = DraftSpeculator(model, policy or EagerPolicy(4), 4)
    return core, executor, model


def run_checked(core: EngineCore, model: DraftModel) -> dict[tuple[str, int], tuple[object, ...]]:
    outputs: dict = {}
    while core.has_work:
        for output in core.step():
            outputs.setdefault((output.request_id, output.index), []).append(output)
        model.check_integrity()
    assert model._pool.num_free == model._pool.num_blocks
    stats = core.stats()
    assert stats.num_free_blocks == stats.num_blocks
    return summary(outputs)


MIXED = [
    Request("greedy", prompt(1, 21), params(max_tokens=40, ignore_eos=True)),
    Request("long", prompt(2, 90), params(max_tokens=30, ignore_eos=True)),
    Request("seeded", prompt(3, 9), params(temperature=0.9, seed=5, n=2, max_tokens=30, logprobs=2)),
    Request("unseeded", prompt(4, 33), params(temperature=0.8, top_p=0.9, max_tokens=30)),
    Request("penalised", prompt(5, 12), params(repetition_penalty=1.3, frequency_penalty=0.5, max_tokens=30)),
    Request("short", prompt(6, 3), params(max_tokens=1)),
]


@pytest.mark.parametrize("wrong", [0, 3, 10])
@pytest.mark.parametrize("config", [{}, {"num_blocks": 20}, {"max_batch_tokens": 9, "num_draft_blocks": 30}])
def test_tokens_are_those_without_a_draft_model(wrong: int, config: dict[str, int]) -> None:
    plain, _ = make_core(make_config(**{k: v for k, v in config.items() if k != "num_draft_blocks"}))
    core, _, model = make_pair(wrong=wrong, **config)
    for request in MIXED:
        plain.add(request)
        core.add(request)
    assert run_checked(core, model) == summary(run(plain))
    stats = core.stats()
    assert (stats.accepted_draft_tokens_total > 0) == (wrong < 10) or stats.accepted_draft_tokens_total < 10
    assert stats.draft_tokens_total > 0


def test_a_draft_model_that_is_right_saves_most_steps() -> None:
    core, executor, model = make_pair(wrong=0)
    core.add(Request("a", prompt(1, 21), params(max_tokens=50, ignore_eos=True)))
    assert run_checked(core, model)["a", 0][0] == expected_tokens(prompt(1, 21), 50, eos=None)
    assert core.stats().steps_total < 18
    assert sum(tokens for tokens, _ in executor.batches) < 21 + 50 + 20  # each token once, not again every step


def test_sequences_that_do_not_fit_in_the_draft_models_cache_go_on_without() -> None:
    core, _, model = make_pair(wrong=0, num_draft_blocks=6)
    for i in range(4):
        core.add(Request(str(i), prompt(i, 30), params(max_tokens=20, ignore_eos=True)))
    outputs = run_checked(core, model)
    for i in range(4):
        assert outputs[str(i), 0][0] == expected_tokens(prompt(i, 30), 20, eos=None)
    assert core.stats().accepted_draft_tokens_total > 0


def test_cancelling_frees_the_draft_models_blocks() -> None:
    core, _, model = make_pair()
    core.add(Request("a", prompt(7, 60), params(n=3, max_tokens=60)))
    for _ in range(8):
        core.step()
    assert model._pool.num_free < model._pool.num_blocks
    core.cancel("a")
    assert model._pool.num_free == model._pool.num_blocks


def test_a_draft_model_that_fails_is_left_alone_and_the_engine_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    core, executor, _ = make_pair(wrong=0)
    core.add(Request("a", prompt(1, 9), params()))
    core.step()
    core.step()
    executor.failures.append(ValueError("no such tile"))
    outputs = [output for _ in range(30) if core.has_work for output in core.step()]
    assert outputs[-1].finish_reason == "length"
    steps = len(executor.batches)
    core.add(Request("b", prompt(2, 9), params()))
    assert run(core)["b", 0][-1].finish_reason
    assert len(executor.batches) == steps
    assert "without guesses" in caplog.text


def keep_time(
    patch: pytest.MonkeyPatch, core: EngineCore, draft: FakeExecutor, *, step_s: float, draft_step_s: float
) -> None:
    """A clock that only executors move."""
    chance = random.Random(1)
    now = [0.0]
    core._clock = lambda: now[0]
    for executor, seconds in ((core._executor, step_s), (draft, draft_step_s)):

        def run(inputs: StepInputs, run: Any = executor.execute, seconds: float = seconds, **asked: bool) -> object:
            now[0] += seconds * (1 + chance.random() / 10)
            return run(inputs, **asked)

        patch.setattr(executor, "execute", run)


def test_draft_model_is_not_asked_where_it_does_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    core, executor, _ = make_pair(wrong=10, policy=SpeculationPolicy(4, first_credit=16.0, most_credit=256.0))
    keep_time(monkeypatch, core, executor, step_s=0.010, draft_step_s=0.005)
    core.add(Request("a", prompt(1, 9), params(max_tokens=240, ignore_eos=True)))
    while core.has_work:
        core.step()
    assert 0 < len(executor.batches) < 60


def test_hopes_that_were_disappointed_come_back_more_and_more_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    core, executor, _ = make_pair(wrong=10, policy=SpeculationPolicy(4, first_credit=200.0, most_credit=256.0))
    keep_time(monkeypatch, core, executor, step_s=0.010, draft_step_s=0.001)
    tried = []
    for index in range(40):
        core.add(Request(str(index), prompt(1, 9), params(max_tokens=240, ignore_eos=True)))
        before = len(executor.batches)
        while core.has_work:
            core.step()
        tried.append(len(executor.batches) - before)
    assert sum(tried[3:20]) > 0  # it is tried again
    assert sum(1 for count in tried[20:] if count) < sum(1 for count in tried[:20] if count)


def test_warming_leaves_nothing_behind() -> None:
    _, executor, model = make_pair()
    model.warm()
    assert executor.batches
    assert model._pool.num_free == model._pool.num_blocks
    assert not model._mirrors
    model.check_integrity()
