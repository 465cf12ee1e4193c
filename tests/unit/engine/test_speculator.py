"""A core whose steps compute guesses gives the tokens it gives without, whatever the guesses are."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millpond.api.request import Request, SamplingParams
from millpond.inference.engine.core import EngineCore, StepFailedError
from millpond.inference.engine.messages import SequenceOutput
from millpond.inference.engine.speculator import NgramSpeculator, Speculator
from millpond.inference.sched import Sequence
from tests.support.fake_executor import EOS, VOCAB_SIZE, expected_tokens, make_config, make_core
from tests.support.guessing import EagerPolicy, ToldSpeculator

Outputs = dict[tuple[str, int], list[SequenceOutput]]


def params(**changes: object) -> SamplingParams:
    return SamplingParams(**({"temperature": 0.0, "max_tokens": 20} | changes))  # type: ignore[arg-type]


def prompt(seed: int, length: int) -> list[int]:
    return [random.Random(seed).randrange(VOCAB_SIZE - 1) for _ in range(length)]


def run(core: EngineCore) -> Outputs:
    outputs: Outputs = {}
    while core.has_work:
        for output in core.step():
            outputs.setdefault((output.request_id, output.index), []).append(output)
    stats = core.stats()
    assert stats.num_free_blocks == stats.num_blocks
    return outputs


def summary(outputs: Outputs) -> dict[tuple[str, int], tuple[object, ...]]:
    """What clients see, whatever the number of steps it came in."""
    return {
        key: (
            [token for part in parts for token in part.token_ids],
            [logprob for part in parts for logprob in part.logprobs or ()],
            parts[-1].finish_reason,
            parts[-1].stop_reason,
        )
        for key, parts in outputs.items()
    }


def guess_from(known: dict[str, list[list[int]]], seed: int) -> Callable[[Sequence], list[int]]:
    """Guesses that are right for a while and then wrong, from what a run without guesses gave."""
    chance = random.Random(seed)

    def guess(seq: Sequence) -> list[int]:
        at = len(seq.output_token_ids)
        right = known[seq.request_id][seq.index][at : at + chance.randrange(6)]
        return right + [chance.randrange(VOCAB_SIZE) for _ in range(chance.randrange(3))]

    return guess


def compare(requests: list[Request], seed: int = 0, **config: object) -> tuple[int, int]:
    """Runs the requests with and without guesses; returns the steps of both."""
    plain, _ = make_core(make_config(**config))
    told, _ = make_core(make_config(**config))
    for core in (plain, told):
        for request in requests:
            core.add(request)
    expected = summary(run(plain))
    known: dict[str, list[list[int]]] = {}
    for (request_id, _), (tokens, *_rest) in sorted(expected.items()):
        known.setdefault(request_id, []).append(tokens)  # type: ignore[arg-type]
    told._speculator = ToldSpeculator(guess_from(known, seed))
    assert summary(run(told)) == expected
    return plain.stats().steps_total, told.stats().steps_total


def test_guesses_change_no_token_of_a_greedy_sequence_and_save_steps() -> None:
    steps, fewer = compare([Request("a", prompt(1, 21), params(max_tokens=60, ignore_eos=True))])
    assert fewer < 0.7 * steps


def test_right_guesses_come_out_together_with_one_logprob_each() -> None:
    output = expected_tokens(prompt(1, 9), 20)
    core, executor = make_core(speculator=ToldSpeculator(lambda seq: output[len(seq.output_token_ids) :][:3]))
    core.add(Request("a", prompt(1, 9), params(logprobs=1)))
    parts = run(core)["a", 0]
    # It did not run yet when guesses for the first step were asked for.
    assert [len(part.token_ids) for part in parts] == [1, 4, 4, 4, 4, 3]
    assert [logprob.token_id for part in parts for logprob in part.logprobs or ()] == output
    assert len(executor.batches) == 6
    stats = core.stats()
    assert (stats.draft_tokens_total, stats.accepted_draft_tokens_total) == (14, 14)


def test_wrong_guesses_are_counted_and_cost_no_token() -> None:
    core, _ = make_core(speculator=ToldSpeculator(lambda seq: [(seq.token_ids[-1] + 1) % VOCAB_SIZE] * 2))
    core.add(Request("a", prompt(1, 9), params()))
    assert [token for part in run(core)["a", 0] for token in part.token_ids] == expected_tokens(prompt(1, 9), 20)
    assert core.stats().accepted_draft_tokens_total <= 2 < core.stats().draft_tokens_total


KINDS = st.builds(
    params,
    temperature=st.sampled_from([0.0, 0.8]),
    seed=st.one_of(st.none(), st.integers(0, 9)),
    top_p=st.sampled_from([1.0, 0.7]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    frequency_penalty=st.sampled_from([0.0, 1.0]),
    min_tokens=st.sampled_from([0, 7]),
    max_tokens=st.integers(0, 25),
    stop_token_ids=st.sampled_from([(), tuple(range(0, VOCAB_SIZE, 9))]),
    ignore_eos=st.booleans(),
    logprobs=st.sampled_from([None, 2]),
    prompt_logprobs=st.sampled_from([None, 1]),
    bad_words_ids=st.sampled_from([(), ((5,), (7, 8))]),
    n=st.integers(1, 3),
)


@settings(max_examples=40, deadline=None)
@given(
    kinds=st.lists(st.tuples(KINDS, st.integers(0, 3), st.integers(1, 70)), min_size=1, max_size=6),
    num_blocks=st.sampled_from([16, 64]),
    max_batch_tokens=st.sampled_from([8, 11, 32]),
    enable_prefix_cache=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_guesses_in_any_mixed_batch_change_nothing(
    kinds: list[tuple[SamplingParams, int, int]], seed: int, **config: object
) -> None:
    requests = [Request(str(i), prompt(stem, length), kind) for i, (kind, stem, length) in enumerate(kinds)]
    compare(requests, seed, **config)


def test_preempted_sequences_go_on_where_they_were_with_guesses() -> None:
    requests = [Request(str(i), prompt(10 + i, 30), params(max_tokens=40, ignore_eos=True)) for i in range(4)]
    compare(requests, num_blocks=14)


def test_a_stop_token_among_right_guesses_ends_the_sequence_there() -> None:
    output = expected_tokens(prompt(1, 9), 12, eos=None)
    core, _ = make_core(speculator=ToldSpeculator(lambda seq: output[len(seq.output_token_ids) :][:8]))
    core.add(Request("a", prompt(1, 9), params(stop_token_ids=(output[4],))))
    first, last = run(core)["a", 0]
    assert first.token_ids + last.token_ids == output[:5]
    assert (last.finish_reason, last.stop_reason) == ("stop", output[4])


def test_cancelling_between_steps_frees_everything() -> None:
    core, _ = make_core(speculator=ToldSpeculator(lambda seq: [1] * 5))
    core.add(Request("a", prompt(7, 60), params(n=3)))
    core.add(Request("b", prompt(8, 20), params()))
    for _ in range(4):
        core.step()
    core.cancel("a")
    assert [t for part in run(core)["b", 0] for t in part.token_ids][-5:] == expected_tokens(prompt(8, 20), 20)[-5:]


def test_a_failed_step_with_guesses_leaves_nothing_behind() -> None:
    core, executor = make_core(speculator=ToldSpeculator(lambda seq: [1] * 5))
    core.add(Request("a", prompt(9, 40), params()))
    core.step()
    core.step()
    executor.failures.append(ValueError("lost"))
    with pytest.raises(StepFailedError):
        core.step()
    core.add(Request("b", prompt(9, 40), params()))
    assert [t for part in run(core)["b", 0] for t in part.token_ids] == expected_tokens(prompt(9, 40), 20)


@pytest.mark.parametrize("speculator", [None, NgramSpeculator(EagerPolicy(4), 4)])
def test_text_that_repeats_is_guessed_from_itself(speculator: Speculator | None) -> None:
    core, executor = make_core(make_config(num_blocks=128), speculator=speculator)
    forced = params(logit_bias={7: 100.0}, max_tokens=80, ignore_eos=True)  # it can say nothing but 7
    core.add(Request("a", [7] * 5, forced))
    core.add(Request("b", prompt(3, 12), params()))
    outputs = summary(run(core))
    assert outputs["a", 0][0] == [7] * 80
    assert outputs["b", 0][0] == expected_tokens(prompt(3, 12), 20)
    assert len(executor.batches) < 45 if speculator else len(executor.batches) >= 80
    assert core.stats().accepted_draft_tokens_total == (pytest.approx(64, abs=6) if speculator else 0)


def test_the_end_of_sequence_token_is_never_passed() -> None:
    ending = next(p for s in range(1000) if (e := expected_tokens(p := prompt(s, 5), 60))[-1] == EOS and len(e) > 3)
    output = expected_tokens(ending, 60)
    core, _ = make_core(speculator=ToldSpeculator(lambda seq: [*output[len(seq.output_token_ids) :], 1, 1]))
    core.add(Request("a", ending, params(max_tokens=60)))
    parts = run(core)["a", 0]
    assert [token for part in parts for token in part.token_ids] == output
    assert parts[-1].finish_reason == "stop"
