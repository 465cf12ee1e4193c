"""The rules of a batch against all prefixes of what waits, written out."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from millpond.serve.servables.batching.plan import BatchPlan, BatchRules, ShapeKeys
from millpond.serve.servables.calls import Answer, Call
from millpond.serve.servables.config import ServableConfig
from millpond.serve.servables.tensors import TensorSpec
from tests.support.memory_backend import request_of, tensor


@dataclass(frozen=True)
class Waiting:
    rows: int
    key: int
    age: int


def calls_of(waiting: list[Waiting], now_ns: int) -> list[Call]:
    calls = []
    for item in waiting:
        call = Call(request_of("m"), item.rows, Answer(None))  # type: ignore[arg-type]  # never answered
        call.shape_key = item.key
        call.accepted_ns = now_ns - item.age
        calls.append(call)
    return calls


def by_prefixes(rules: BatchRules, waiting: list[Waiting], now_ns: int) -> BatchPlan:
    """What Triton's documentation says, over all prefixes."""
    prefixes = [waiting[:count] for count in range(1, len(waiting) + 1)]
    legal = [
        prefix
        for prefix in prefixes
        if len(prefix) == 1 or (sum(p.rows for p in prefix) <= rules.max_rows and len({p.key for p in prefix}) == 1)
    ]
    if not legal:
        return BatchPlan(0)
    longest = legal[-1]
    rows = sum(p.rows for p in longest)
    age = max(p.age for p in longest)
    largest = max(rules.preferred) if rules.preferred else rules.max_rows
    good = [prefix for prefix in legal if sum(p.rows for p in prefix) in rules.preferred]
    if not good:
        crossing = [prefix for prefix in prefixes[1:] if sum(p.rows for p in prefix) > largest]
        if crossing and len(crossing[0]) <= len(longest) + 1:
            good = [crossing[0][:-1]]
    is_late = age >= rules.delay_ns
    if good and (rules.delay_ns == 0 or not is_late):
        return BatchPlan(len(good[-1]))
    if len(longest) < len(waiting) or rows >= largest or is_late:
        return BatchPlan(len(longest))
    better = [size for size in rules.preferred if size > rows]
    return BatchPlan(0, now_ns - age + rules.delay_ns, min(better) if better else rules.max_rows)


@settings(deadline=None)
@given(
    waiting=st.lists(st.builds(Waiting, st.integers(1, 8), st.integers(0, 1), st.integers(0, 30)), max_size=10),
    max_rows=st.integers(8, 16),
    preferred=st.frozensets(st.integers(1, 8), max_size=3),
    delay_ns=st.sampled_from([0, 10, 20]),
)
def test_the_rules_do_what_is_written(
    waiting: list[Waiting], max_rows: int, preferred: frozenset[int], delay_ns: int
) -> None:
    rules = BatchRules(max_rows, preferred, delay_ns)
    assert rules.plan(calls_of(waiting, 100), 100) == by_prefixes(rules, waiting, 100)


@given(
    waiting=st.lists(st.builds(Waiting, st.integers(1, 8), st.just(0), st.integers(0, 30)), min_size=1, max_size=10),
    delay_ns=st.sampled_from([0, 10, 20]),
    lead_ns=st.integers(0, 10),
)
def test_calls_that_are_one_batch_need_no_look_at_each(waiting: list[Waiting], delay_ns: int, lead_ns: int) -> None:
    rows = sum(item.rows for item in waiting)
    rules = BatchRules(max(rows, 30), frozenset(), delay_ns)
    in_order = sorted(waiting, key=lambda item: -item.age)
    plan = rules.plan(calls_of(in_order, 100), 100, lead_ns)
    assert bool(plan.count) == rules.plan_whole(rows, 100 - in_order[0].age, 100, lead_ns)
    assert plan.count in (0, len(waiting))


def test_only_requests_with_the_same_tensors_have_the_same_key() -> None:
    x, y = TensorSpec("X", "INT32", (-1,)), TensorSpec("Y", "INT32", (2,), optional=True)
    config = ServableConfig("m", "memory", (x, y), (), max_batch_size=8)
    keys = ShapeKeys(config)
    short, long = request_of("m", [[1, 2]]), request_of("m", [[1, 2, 3]])
    rows = request_of("m", [[1, 2], [3, 4]])
    more = request_of("m", [[1, 2]])
    more.inputs["Y"] = tensor("Y", [[1, 2]])
    assert keys.of(short) == keys.of(rows)
    assert len({keys.of(request) for request in (short, long, more)}) == 3
    ragged = ShapeKeys(ServableConfig("m", "memory", (TensorSpec("X", "INT32", (-1,), ragged=True),), ()))
    assert ragged.of(short) == ragged.of(long)
