"""The core on a fake executor whose tokens tell whether every slot, table and position was right."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from millpond.api.request import Request, SamplingParams
from millpond.base.errors import QueueFullError
from millpond.inference.engine.core import EngineCore, StepFailedError
from millpond.inference.engine.messages import SequenceOutput
from millpond.inference.ops.inputs import StepInputs
from tests.support.fake_executor import EOS, VOCAB_SIZE, expected_tokens, logits_after, make_config, make_core

GREEDY = SamplingParams(temperature=0.0, max_tokens=20)


def params(**changes: object) -> SamplingParams:
    return SamplingParams(**({"temperature": 0.0, "max_tokens": 20} | changes))  # type: ignore[arg-type]


def prompt(seed: int, length: int) -> list[int]:
    return [random.Random(seed).randrange(VOCAB_SIZE - 1) for _ in range(length)]


def run(core: EngineCore) -> dict[tuple[str, int], list[SequenceOutput]]:
    """Steps until nothing is left; every sequence's outputs."""
    outputs: dict[tuple[str, int], list[SequenceOutput]] = {}
    while core.has_work:
        for output in core.step():
            outputs.setdefault((output.request_id, output.index), []).append(output)
    return outputs


def tokens_of(outputs: list[SequenceOutput]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


def all_blocks_are_free(core: EngineCore) -> bool:
    stats = core.stats()
    return stats.num_free_blocks == stats.num_blocks and stats.num_running == stats.num_waiting == 0


def test_a_sequence_gets_the_tokens_that_follow_from_its_prompt() -> None:
    core, _ = make_core()
    core.add(Request("a", prompt(1, 21), GREEDY))
    outputs = run(core)["a", 0]
    assert tokens_of(outputs) == expected_tokens(prompt(1, 21), 20)
    assert outputs[-1].finish_reason == "length"
    assert all_blocks_are_free(core)


def test_many_sequences_of_all_lengths_do_not_disturb_each_other() -> None:
    core, _ = make_core(make_config(num_blocks=256, max_queue=64))
    prompts = {str(i): prompt(i, 1 + 7 * i % 90) for i in range(40)}
    for request_id, tokens in prompts.items():
        core.add(Request(request_id, tokens, GREEDY))
    outputs = run(core)
    for request_id, tokens in prompts.items():
        assert tokens_of(outputs[request_id, 0]) == expected_tokens(tokens, 20)


def test_a_prompt_longer_than_a_step_is_computed_in_chunks() -> None:
    core, executor = make_core()
    core.add(Request("a", prompt(2, 150), GREEDY))
    assert tokens_of(run(core)["a", 0]) == expected_tokens(prompt(2, 150), 20)
    assert max(tokens for tokens, _ in executor.batches) == 32


def test_a_shared_prefix_is_found_and_gives_the_same_tokens() -> None:
    core, _ = make_core()
    core.add(Request("a", prompt(3, 100), GREEDY))
    first = tokens_of(run(core)["a", 0])
    core.add(Request("b", prompt(3, 100), GREEDY))
    second = run(core)["b", 0]
    assert second[0].num_cached_tokens == 96
    assert tokens_of(second) == first == expected_tokens(prompt(3, 100), 20)


def test_preempted_sequences_go_on_where_they_were() -> None:
    core, _ = make_core(make_config(num_blocks=14))  # two of them do not fit
    for i in range(4):
        core.add(Request(str(i), prompt(10 + i, 30), params(max_tokens=40, ignore_eos=True)))
    outputs = run(core)
    assert core.stats().preemptions_total > 0
    for i in range(4):
        assert tokens_of(outputs[str(i), 0]) == expected_tokens(prompt(10 + i, 30), 40, eos=None)
    assert all_blocks_are_free(core)


def test_the_end_of_sequence_token_ends_it_and_is_reported() -> None:
    core, _ = make_core()
    ending = next(
        p for seed in range(1000) if (e := expected_tokens(p := prompt(seed, 5), 60))[-1] == EOS and len(e) > 3
    )
    core.add(Request("a", ending, params(max_tokens=60)))
    last = run(core)["a", 0][-1]
    assert (last.token_ids, last.finish_reason, last.stop_reason) == ([EOS], "stop", None)


def test_a_stop_token_is_the_stop_reason() -> None:
    core, _ = make_core()
    stop = expected_tokens(prompt(1, 9), 5)[4]
    core.add(Request("a", prompt(1, 9), params(stop_token_ids=(stop,))))
    outputs = run(core)["a", 0]
    assert (outputs[-1].finish_reason, outputs[-1].stop_reason) == ("stop", stop)
    assert tokens_of(outputs) == expected_tokens(prompt(1, 9), 5)


def test_each_choice_of_a_seeded_request_is_drawn_for_itself_and_again_the_same() -> None:
    results = []
    for others in (0, 5):
        core, _ = make_core()
        for i in range(others):
            core.add(Request(f"other{i}", prompt(50 + i, 12), params(temperature=1.0)))
        core.add(Request("a", prompt(4, 12), params(n=3, temperature=1.0, seed=42)))
        outputs = run(core)
        results.append([tokens_of(outputs["a", index]) for index in range(3)])
    assert results[0] == results[1]
    assert len({tuple(tokens) for tokens in results[0]}) == 3


def test_logprobs_are_those_of_the_logits() -> None:
    core, _ = make_core()
    core.add(Request("a", prompt(5, 10), params(max_tokens=3, logprobs=4)))
    tokens = list(prompt(5, 10))
    for output in run(core)["a", 0]:
        logits = logits_after(tokens).astype(np.float64)
        logprobs = logits - np.log(np.exp(logits).sum())
        best = np.argsort(-logprobs)[:4]
        assert output.logprobs is not None
        (told,) = output.logprobs
        assert told.token_id == output.token_ids[0]
        assert told.logprob == pytest.approx(logprobs[told.token_id], abs=1e-5)
        assert [token for token, _ in told.top] == best.tolist()
        assert [logprob for _, logprob in told.top] == pytest.approx(logprobs[best].tolist(), abs=1e-5)
        tokens += output.token_ids


@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 100])
def test_prompt_logprobs_judge_every_prompt_token_but_the_first(length: int) -> None:
    core, _ = make_core()
    tokens = prompt(6, length)
    core.add(Request("warm", tokens, GREEDY))  # a prefix hit must not hide tokens
    run(core)
    core.add(Request("a", tokens, params(n=2, prompt_logprobs=2)))
    outputs = run(core)
    told = outputs["a", 0][0].prompt_logprobs
    assert told is not None
    assert told[0] is None
    assert len(told) == length
    for place, judged in enumerate(told[1:], 1):
        logits = logits_after(tokens[:place]).astype(np.float64)
        assert judged is not None
        assert judged.token_id == tokens[place]
        assert judged.logprob == pytest.approx((logits - np.log(np.exp(logits).sum()))[tokens[place]], abs=1e-5)
    assert outputs["a", 1][0].prompt_logprobs is None
    assert all(output.prompt_logprobs is None for output in outputs["a", 0][1:])
    assert tokens_of(outputs["a", 0]) == expected_tokens(tokens, 20)


def test_prompt_logprobs_survive_a_preemption() -> None:
    core, _ = make_core(make_config(num_blocks=14))
    for i in range(3):
        core.add(Request(str(i), prompt(20 + i, 40), params(max_tokens=40, ignore_eos=True, prompt_logprobs=0)))
    outputs = run(core)
    assert core.stats().preemptions_total > 0
    for i in range(3):
        told = [output.prompt_logprobs for output in outputs[str(i), 0] if output.prompt_logprobs is not None]
        assert [len(judged) for judged in told] == [40]
        assert tokens_of(outputs[str(i), 0]) == expected_tokens(prompt(20 + i, 40), 40, eos=None)


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_cancelling_frees_everything_at_any_moment(steps: int) -> None:
    core, _ = make_core()
    core.add(Request("a", prompt(7, 60), params(n=3)))
    for _ in range(steps):
        core.step()
    core.cancel("a")
    core.cancel("a")
    assert not core.has_work
    assert all_blocks_are_free(core)


def test_cancelling_one_choice_leaves_the_others() -> None:
    core, _ = make_core()
    core.add(Request("a", prompt(8, 9), params(n=3)))
    core.step()
    core.cancel("a", 1)
    outputs = run(core)
    assert tokens_of(outputs["a", 2])[-5:] == expected_tokens(prompt(8, 9), 20)[-5:]
    assert ("a", 1) not in outputs


def test_a_deadline_ends_a_running_and_a_waiting_request() -> None:
    now = [0.0]
    core, _ = make_core(make_config(max_sequences=1), clock=lambda: now[0])
    core.add(Request("running", prompt(1, 5), GREEDY, deadline_s=1.0))
    core.add(Request("waiting", prompt(2, 5), GREEDY, deadline_s=1.0))
    core.step()
    now[0] = 2.0
    outputs = run(core)
    for request_id in ("running", "waiting"):
        last = outputs[request_id, 0][-1]
        assert last.finish_reason == "deadline"
        assert last.error is not None
        assert last.error.code == "deadline_exceeded"
    assert all_blocks_are_free(core)


def test_the_first_output_says_how_long_the_sequence_waited() -> None:
    now = [0.0]
    core, _ = make_core(clock=lambda: now[0])
    core.add(Request("a", prompt(1, 5), params(max_tokens=2)))
    now[0] = 3.0
    outputs = run(core)["a", 0]
    assert [output.queue_s for output in outputs] == [3.0, None]


def test_a_full_queue_takes_no_part_of_a_request() -> None:
    core, _ = make_core(make_config(max_sequences=1, max_queue=2))
    core.add(Request("a", prompt(1, 5), GREEDY))
    with pytest.raises(QueueFullError):
        core.add(Request("b", prompt(2, 5), params(n=3)))
    core.add(Request("c", prompt(3, 5), params(n=2)))
    assert {request_id for request_id, _ in run(core)} == {"a", "c"}


def test_a_failed_step_ends_its_sequences_and_the_engine_goes_on() -> None:
    core, executor = make_core(make_config(max_sequences=2))
    for i in range(3):
        core.add(Request(str(i), prompt(30 + i, 20), GREEDY))
    core.step()
    executor.failures.append(ValueError("no such tile"))
    with pytest.raises(StepFailedError) as failure:
        core.step()
    assert {output.request_id for output in failure.value.outputs} == {"0", "1"}
    assert all(output.finish_reason == "error" for output in failure.value.outputs)
    assert tokens_of(run(core)["2", 0]) == expected_tokens(prompt(32, 20), 20)
    assert all_blocks_are_free(core)


def test_what_a_failed_step_wrote_is_never_a_prefix_hit() -> None:
    core, executor = make_core()
    core.add(Request("a", prompt(9, 64), GREEDY))
    core.step()
    executor.failures.append(ValueError("lost"))
    with pytest.raises(StepFailedError):
        core.step()
    core.add(Request("b", prompt(9, 64), GREEDY))
    outputs = run(core)["b", 0]
    assert outputs[0].num_cached_tokens == 32  # the first step's, not the second's
    assert tokens_of(outputs) == expected_tokens(prompt(9, 64), 20)


def test_an_interrupt_leaves_the_core_usable() -> None:
    core, executor = make_core()
    core.add(Request("a", prompt(1, 5), GREEDY))
    executor.failures.append(KeyboardInterrupt())  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        core.step()
    core.add(Request("b", prompt(1, 5), GREEDY))
    assert tokens_of(run(core)["b", 0]) == expected_tokens(prompt(1, 5), 20)


def test_logits_that_are_no_numbers_end_their_sequence_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    core, executor = make_core()
    good, bad = prompt(1, 5), prompt(2, 6)
    execute = executor.execute

    def spoiled(inputs: StepInputs, *, wants_sums: bool) -> np.ndarray:
        logits = execute(inputs, wants_sums=wants_sums)
        for row, token_row in enumerate(inputs.logit_rows.tolist()):
            sequence = int(np.searchsorted(inputs.query_start, token_row, side="right")) - 1
            if inputs.context_len[sequence] == len(bad) + 2:
                logits[row] = math.nan
        return logits

    monkeypatch.setattr(executor, "execute", spoiled)
    core.add(Request("good", good, params(max_tokens=2)))
    core.add(Request("bad", bad, params(max_tokens=9)))
    outputs = run(core)
    assert tokens_of(outputs["good", 0]) == expected_tokens(good, 2)
    assert outputs["bad", 0][-1].finish_reason == "error"
    assert tokens_of(outputs["bad", 0]) == expected_tokens(bad, 2)
    assert all_blocks_are_free(core)


def test_counters_count() -> None:
    core, _ = make_core()
    core.add(Request("a", prompt(1, 40), params(max_tokens=5, ignore_eos=True)))
    run(core)
    stats = core.stats()
    assert (stats.prompt_tokens_total, stats.output_tokens_total, stats.steps_total) == (40, 5, 6)
