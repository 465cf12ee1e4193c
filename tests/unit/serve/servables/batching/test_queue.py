"""What waits in a queue of batches, against a plain list of it: order, counts, and what is said of all at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hypothesis import given
from hypothesis import strategies as st

from millpond.serve.servables.batching.queue import PolicyQueue
from millpond.serve.servables.calls import Answer, Call
from millpond.serve.servables.config import DynamicBatching, QueuePolicy
from tests.support.memory_backend import request_of


@dataclass(frozen=True)
class Step:
    what: Literal["add", "forget", "take", "expire"]
    number: int
    key: int
    timeout_us: int
    priority: int


STEPS = st.lists(
    st.builds(
        Step,
        what=st.sampled_from(["add", "add", "add", "forget", "take", "expire"]),
        number=st.integers(0, 5),
        key=st.sampled_from([0, 0, 0, 1]),
        timeout_us=st.sampled_from([0, 0, 3]),
        priority=st.integers(0, 2),
    ),
    max_size=60,
)


@given(steps=STEPS, levels=st.sampled_from([0, 2]), on_timeout=st.sampled_from(["reject", "delay"]))
def test_it_holds_what_a_list_of_the_same_calls_holds(
    steps: list[Step], levels: int, on_timeout: Literal["reject", "delay"]
) -> None:
    policy = QueuePolicy(on_timeout, allow_override=True)
    queue = PolicyQueue(DynamicBatching(priority_levels=levels, queue_policy=policy), max_wait_ns=10**12)
    waiting: list[Call] = []
    for now_us, step in enumerate(steps):
        if step.what == "add":
            request = request_of("m", timeout_us=step.timeout_us, priority=step.priority)
            call = Call(request, step.number + 1, Answer(None))  # type: ignore[arg-type]  # never answered
            call.shape_key, call.accepted_ns = step.key, now_us * 1000
            assert queue.add(call, now_us * 1000)
            waiting.append(call)
        elif step.what == "forget" and waiting:
            call = waiting.pop(step.number % len(waiting))
            call.done = True
            queue.forget(call)
        elif step.what == "expire":
            for call in queue.expire(now_us * 1000):
                call.done = True
                waiting.remove(call)
        elif step.what == "take":
            in_order = list(queue)
            taken = queue.take(min(step.number, queue.size))
            assert taken == in_order[: len(taken)]
            assert len(taken) == min(step.number, len(waiting))
            for call in taken:
                call.started_ns = 1
                waiting.remove(call)
        assert (queue.size, queue.rows) == (len(waiting), sum(call.rows for call in waiting))
        assert {id(call) for call in queue} == {id(call) for call in waiting}
        oldest = queue.oldest_alike()
        if oldest is not None:
            assert oldest is min(waiting, key=lambda call: call.accepted_ns)
            assert len({call.shape_key for call in waiting}) == 1
        elif levels == 0 and on_timeout == "reject" and waiting and all(step.key == 0 for step in steps):
            assert any(step.what in ("forget", "expire") for step in steps)  # who gave up may still be in the line
