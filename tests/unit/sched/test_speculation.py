"""The policy on a simulated machine: faster where guessing pays, and never slower than off by more than 2 %."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from millpond.inference.sched.speculation import SpeculationPolicy, StepCost

Cost = Callable[[int, int], float]  # sequences, guesses -> seconds
TOKENS = 64_000


def at_bandwidth(num_sequences: int, num_guesses: int) -> float:
    """Weights are read once, whatever is computed."""
    return 0.010 + 0.0002 * (num_sequences + num_guesses)


def at_compute(num_sequences: int, num_guesses: int) -> float:
    """Every token costs the same."""
    return 0.001 + 0.002 * (num_sequences + num_guesses)


def in_tiles(num_sequences: int, num_guesses: int) -> float:
    """One row has a fast path of its own, more are rounded up."""
    rows = num_sequences + num_guesses
    return 0.005 if rows == 1 else 0.012 * -(-rows // 16)


COSTS = [at_bandwidth, at_compute, in_tiles]


def simulate(
    cost: Cost,
    num_sequences: int,
    truth: Callable[[int], float],
    told: Callable[[int], float] | None = None,
    hiccups: float = 0.0,
) -> float:
    """Time without guesses over time with them, for the same tokens.

    Args:
        cost: The machine.
        num_sequences: That decode.
        truth: How likely a guess is right, by step.
        told: What the policy is told instead.
        hiccups: How often the machine is elsewhere for ten steps, which counts for neither side.
    """
    chance = random.Random(1)
    policy = SpeculationPolicy(8)
    with_guesses = without = 0.0
    for step in range(min(4000, TOKENS // num_sequences)):  # many sequences learn as much in fewer steps
        confidences = [(told or truth)(step)] * num_sequences
        counts = policy.choose(num_sequences, confidences)
        accepted = 0
        for count in counts:
            for _ in range(count):
                if chance.random() >= truth(step):
                    break
                accepted += 1
        seconds = cost(num_sequences, sum(counts)) * max(0.5, chance.gauss(1.0, 0.05))
        lost = 10 * cost(num_sequences, 0) if chance.random() < hiccups else 0.0
        policy.observe(num_sequences, sum(counts), accepted, seconds + lost)
        with_guesses += seconds
        without += cost(num_sequences, 0) * (1.0 + accepted / num_sequences)
    return without / with_guesses


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("num_sequences", [1, 4, 16, 64])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.3, 0.5, 0.8, 0.97])
def test_it_is_never_slower_than_off(cost: Cost, num_sequences: int, rate: float) -> None:
    assert simulate(cost, num_sequences, lambda _: rate) > 0.98


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("num_sequences", [1, 8, 64])
@pytest.mark.parametrize("lie", [0.6, 0.95])
def test_confidence_that_is_wrong_costs_a_hundredth_at_most(cost: Cost, num_sequences: int, lie: float) -> None:
    assert simulate(cost, num_sequences, lambda _: 0.02, lambda _: lie) > 0.98


@pytest.mark.parametrize("cost", COSTS)
def test_text_that_turns_is_followed(cost: Cost) -> None:
    def truth(step: int) -> float:
        return 0.95 if step // 200 % 2 else 0.02

    def told(step: int) -> float:
        return truth(max(0, step - 10))  # it takes some tokens to see it

    assert simulate(cost, 2, truth, told) > 0.98


def test_where_guesses_are_nearly_free_and_right_it_is_several_times_as_fast() -> None:
    assert simulate(at_bandwidth, 1, lambda _: 0.9) > 3.0
    assert simulate(at_bandwidth, 16, lambda _: 0.9) > 1.5


@pytest.mark.parametrize("num_sequences", [1, 4])
def test_a_machine_that_is_elsewhere_now_and_then_is_no_reason_to_stop(num_sequences: int) -> None:
    undisturbed = simulate(at_bandwidth, num_sequences, lambda _: 0.9)
    assert simulate(at_bandwidth, num_sequences, lambda _: 0.9, hiccups=0.02) > 0.8 * undisturbed
    assert simulate(at_bandwidth, num_sequences, lambda _: 0.05, hiccups=0.02) > 0.98


def test_where_every_token_costs_the_same_guessing_stops() -> None:
    policy = SpeculationPolicy(8)
    computed = []
    for _ in range(1000):
        guesses = sum(policy.choose(64, [0.7] * 64))
        computed.append(guesses)
        policy.observe(64, guesses, round(0.6 * guesses), at_compute(64, guesses))
    assert sum(1 for guesses in computed[100:] if guesses) < 20


def test_where_guesses_can_never_pay_nobody_needs_to_look_for_them() -> None:
    policy = SpeculationPolicy(8)
    assert not policy.can_pay(64)  # nothing was measured
    for _ in range(5):
        policy.observe(64, 0, 0, at_compute(64, 0))
    assert policy.can_pay(64)  # there is hope
    for guesses in (1, 4, 16, 64, 256, 512):
        policy.observe(64, guesses, guesses, at_compute(64, guesses))
    policy._credit = 1.0
    assert not policy.can_pay(64)


def test_without_confidence_nothing_is_tried() -> None:
    policy = SpeculationPolicy(8)
    for _ in range(100):
        assert policy.choose(4, [0.01] * 4) == [0] * 4
        policy.observe(4, 0, 0, 0.01)


def test_the_likelier_sequences_get_the_guesses() -> None:
    policy = SpeculationPolicy(8)
    for _ in range(5):
        policy.observe(3, 0, 0, 0.01)
    counts = policy.choose(3, [0.1, 0.95, 0.5])
    assert counts[1] == 8 > counts[2] > counts[0]


def test_nothing_is_guessed_before_the_time_without_is_known_and_after_it_is_old() -> None:
    policy = SpeculationPolicy(4)
    assert policy.choose(1, [0.9]) == [0]
    for _ in range(3):
        policy.observe(1, 0, 0, 0.01)
    assert policy.choose(1, [0.9]) == [4]
    for _ in range(64):
        policy.observe(1, 4, 4, 0.01)
    assert policy.choose(1, [0.9]) == [0]
    policy.observe(1, 0, 0, 0.01)
    assert policy.choose(1, [0.9]) == [4]


def test_a_step_in_which_the_machine_was_elsewhere_counts_for_nothing() -> None:
    policy = SpeculationPolicy(4)
    for _ in range(5):
        policy.observe(1, 0, 0, 0.01)
    policy.observe(1, 4, 0, 30.0)
    assert policy.choose(1, [0.9]) == [4]
    policy.observe(1, 0, 0, 30.0)
    assert policy.cost.base(1) == pytest.approx(0.01)


def test_a_machine_that_became_slow_is_believed_after_a_while() -> None:
    cost = StepCost()
    for _ in range(5):
        cost.observe(1, 0, 0.01)
    for _ in range(30):
        cost.observe(1, 0, 1.0)
    assert cost.base(1) == pytest.approx(1.0, abs=0.05)


def test_a_step_that_is_slow_every_other_time_is_believed_too() -> None:
    cost = StepCost()
    for _ in range(5):
        cost.observe(1, 0, 0.01)
    for index in range(40):
        cost.observe(1, 4, 0.10 if index % 2 else 0.01)
    assert cost.ratio(1, 4) > 3.0


def test_prices_of_neighbouring_numbers_stand_in_for_each_other() -> None:
    cost = StepCost()
    for _ in range(3):
        cost.observe(4, 0, 0.010)
    assert cost.ratio(4, 8) < 2.0
    cost.observe(4, 8, 0.050)
    assert cost.ratio(4, 8) == pytest.approx(5.0)
    assert cost.ratio(4, 12) > 5.0
    assert cost.ratio(64, 8) < 2.0


def test_a_guess_that_cost_more_than_a_token_is_tried_again_soon() -> None:
    cost = StepCost()
    for _ in range(3):
        cost.observe(1, 0, 0.010)
    cost.observe(1, 4, 0.029)  # the draft model read its weights from the disk
    cold = cost.ratio(1, 4)
    assert cold == pytest.approx(2.9)
    for _ in range(100):
        cost.observe(1, 0, 0.010)
    assert cost.ratio(1, 4) == pytest.approx(2.9)  # as much as tokens of four sequences: believed
    cost.observe(2, 0, 0.010)
    cost.observe(2, 1, 0.025)
    assert cost.ratio(2, 1) == pytest.approx(2.5)
    for _ in range(100):
        cost.observe(1, 0, 0.010)
    assert cost.ratio(2, 1) < 1.5  # hoped for again
    cost.observe(2, 1, 0.011)
    assert cost.ratio(2, 1) == pytest.approx(1.1)  # the least of the first values counts
