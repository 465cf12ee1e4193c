"""Dynamic batching in virtual time: what is merged, when it runs, who is refused, and that no request is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millpond.serve.servables.backend import ModelFolder, Replies
from millpond.serve.servables.config import DynamicBatching, InstanceGroup, QueuePolicy
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.messages import InferRequest, InferResponse
from millpond.serve.servables.registry import Servables
from tests.support.memory_backend import MemoryBackend, MemoryInstance, echo, echo_config, request_of
from tests.support.virtual_time import clock, run


@dataclass
class Room:
    """A servable whose executions take a given time, and what it was seen to do."""

    batching: DynamicBatching
    max_rows: int = 8
    work_us: int = 100
    count: int = 1
    busy: list[list[tuple[int, int]]] = field(default_factory=list)
    starts: dict[str, int] = field(default_factory=dict)
    ends: dict[str, int] = field(default_factory=dict)
    outcomes: dict[str, str] = field(default_factory=dict)

    async def open(self) -> Servables:
        async def work(instance: MemoryInstance, requests: Sequence[InferRequest], replies: Replies) -> None:
            start = clock()
            self.starts.update({request.request_id: start for request in requests})
            await asyncio.sleep(self.work_us / 1e6)
            self.busy[self.backend.instances.index(instance)].append((start, clock()))
            await echo(instance, requests, replies)

        self.backend = MemoryBackend(work)
        servables = Servables({"memory": self.backend}, clock=clock)
        config = replace(
            echo_config("m"),
            max_batch_size=self.max_rows,
            dynamic_batching=self.batching,
            instance_groups=(InstanceGroup("g", self.count),),
        )
        await servables.add(config, ModelFolder(None, 1))
        self.busy = [[] for _ in self.backend.instances]
        self.zero = clock()
        return servables

    async def ask(self, servables: Servables, request: InferRequest, at_us: int = 0, cancel_us: int = 0) -> None:
        await asyncio.sleep(at_us / 1e6)
        try:
            async with asyncio.timeout(cancel_us / 1e6 if cancel_us else None):
                response = await servables.infer(request)
            assert response.outputs["X"].array is request.inputs["X"].array
            self.outcomes[request.request_id] = "answered"
        except ServableError as error:
            self.outcomes[request.request_id] = error.message
        except TimeoutError:
            self.outcomes[request.request_id] = "cancelled"
        self.ends[request.request_id] = clock()

    def sizes(self) -> list[list[str]]:
        return [[request.request_id for request in batch] for batch in self.backend.instances[0].batches]


def ask(name: object, rows: int = 1, width: int = 1, **fields: object) -> InferRequest:
    return request_of("m", [[0] * width] * rows, request_id=str(name), **fields)


def play(room: Room, *asked: tuple[int, InferRequest]) -> None:
    async def main() -> None:
        servables = await room.open()
        async with asyncio.TaskGroup() as tasks:
            for at_us, request in asked:
                tasks.create_task(room.ask(servables, request, at_us))
        await servables.close()

    run(main())


def test_requests_that_wait_together_run_together() -> None:
    room = Room(DynamicBatching())
    play(room, *[(0, ask(n)) for n in range(20)])
    assert [len(batch) for batch in room.sizes()] == [8, 8, 4]
    assert [name for batch in room.sizes() for name in batch] == [str(n) for n in range(20)]


def test_a_delay_gathers_requests_and_ends_when_the_batch_is_full() -> None:
    room = Room(DynamicBatching(max_delay_us=1000))
    play(room, *[(100 * n, ask(n)) for n in range(10)], (5000, ask("late")))
    assert [len(batch) for batch in room.sizes()] == [8, 2, 1]
    zero = room.zero
    assert room.starts["0"] - zero == pytest.approx(700_000, abs=2)
    assert room.starts["8"] - zero == pytest.approx(1_800_000, abs=2)
    assert room.starts["late"] - zero == pytest.approx(6_000_000, abs=2)


def test_a_preferred_size_runs_at_once() -> None:
    room = Room(DynamicBatching(preferred_sizes=(4,), max_delay_us=1000))
    play(room, *[(0, ask(n)) for n in range(7)])
    assert [len(batch) for batch in room.sizes()] == [4, 3]
    assert room.starts["0"] == room.zero
    assert room.starts["4"] - room.zero == pytest.approx(1_000_000, abs=2)


def test_requests_of_other_shapes_are_not_merged_and_do_not_wait() -> None:
    room = Room(DynamicBatching(max_delay_us=10_000))
    play(room, (0, ask("a", width=1)), (1, ask("b", width=1)), (2, ask("c", width=2)))
    assert room.sizes() == [["a", "b"], ["c"]]
    assert room.starts["a"] - room.zero == pytest.approx(2_000, abs=2)


def test_the_most_urgent_come_first_and_unknown_levels_are_the_default_one() -> None:
    room = Room(DynamicBatching(priority_levels=3, default_priority=2), max_rows=1)
    asked = [ask("now"), ask("low", priority=3), ask("none"), ask("odd", priority=9), ask("high", priority=1)]
    play(room, *[(n, request) for n, request in enumerate(asked)])
    assert [batch[0] for batch in room.sizes()] == ["now", "high", "none", "odd", "low"]


def test_a_full_queue_refuses_and_counts_it() -> None:
    policy = QueuePolicy(max_size=2)
    room = Room(DynamicBatching(queue_policy=policy), max_rows=1)
    play(room, *[(n, ask(n)) for n in range(5)])
    assert [room.outcomes[str(n)] for n in range(5)] == [
        "answered",
        "answered",
        "answered",
        "[request id: 3] Exceeds maximum queue size",
        "[request id: 4] Exceeds maximum queue size",
    ]


def test_a_wait_that_is_too_long_is_refused_on_time_although_the_instance_is_busy() -> None:
    policy = QueuePolicy(default_timeout_us=500, allow_override=True)
    room = Room(DynamicBatching(queue_policy=policy), max_rows=1, work_us=1000)
    play(
        room, (0, ask("runs")), (1, ask("waits")), (2, ask("hurried", timeout_us=50)), (3, ask("slow", timeout_us=900))
    )
    assert room.outcomes == {
        "runs": "answered",
        "waits": "[request id: waits] Request timeout expired",
        "hurried": "[request id: hurried] Request timeout expired",
        "slow": "[request id: slow] Request timeout expired",
    }
    waits = {name: (end - room.zero) // 1000 for name, end in room.ends.items()}
    assert waits["hurried"] == pytest.approx(52, abs=1)
    assert waits["waits"] == pytest.approx(501, abs=1)
    assert waits["slow"] == pytest.approx(503, abs=1)


def test_a_policy_may_let_late_requests_wait_behind_the_others() -> None:
    policy = QueuePolicy(on_timeout="delay", default_timeout_us=150, allow_override=False)
    room = Room(DynamicBatching(queue_policy=policy), max_rows=1, work_us=100)
    play(room, (0, ask(0)), (1, ask(1)), (2, ask(2)), (180, ask(3)))
    assert [batch[0] for batch in room.sizes()] == ["0", "1", "3", "2"]


def test_order_is_kept_over_instances_that_are_not_equally_fast() -> None:
    async def main() -> list[int]:
        async def work(instance: MemoryInstance, requests: Sequence[InferRequest], replies: Replies) -> None:
            await asyncio.sleep(float(requests[0].request_id))
            await echo(instance, requests, replies)

        config = replace(
            echo_config("m"),
            max_batch_size=1,
            dynamic_batching=DynamicBatching(preserve_ordering=True),
            instance_groups=(InstanceGroup("g", 3),),
        )
        servables = Servables({"memory": MemoryBackend(work)}, clock=clock)
        await servables.add(config, ModelFolder(None, 1))
        order: list[int] = []

        async def client(number: int, seconds: float, patience: float | None = None) -> None:
            try:
                async with asyncio.timeout(patience):
                    await servables.infer(request_of("m", [[number]], request_id=str(seconds)))
            except TimeoutError:
                return
            order.append(number)

        async with asyncio.TaskGroup() as tasks:
            for number, (seconds, patience) in enumerate([(3.0, None), (9.0, 0.5), (1.0, None), (0.5, None)]):
                tasks.create_task(client(number, seconds, patience))
        await servables.close()
        return order

    assert run(main()) == [0, 2, 3]


def test_those_who_give_up_do_not_pile_up() -> None:
    async def main() -> int:
        room = Room(DynamicBatching(), max_rows=1, work_us=10_000_000)
        servables = await room.open()
        first = asyncio.create_task(room.ask(servables, ask("first")))
        await asyncio.sleep(0.001)
        for number in range(1000):
            await room.ask(servables, ask(number), cancel_us=5)
        scheduler = servables.find("m").scheduler
        assert scheduler.num_waiting == 0
        num_held = sum(len(level.calls) for level in scheduler._queue._levels)  # type: ignore[attr-defined]
        await first
        await servables.close()
        return num_held

    assert run(main()) < 100


@dataclass(frozen=True)
class Ask:
    at_us: int
    rows: int
    width: int
    priority: int
    timeout_us: int
    cancel_us: int


ASKS = st.lists(
    st.builds(
        Ask,
        at_us=st.integers(0, 2000),
        rows=st.integers(1, 4),
        width=st.sampled_from([1, 1, 1, 2]),
        priority=st.integers(0, 3),
        timeout_us=st.sampled_from([0, 0, 100, 700]),
        cancel_us=st.sampled_from([0, 0, 0, 50, 400]),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(
    asks=ASKS,
    preferred=st.sampled_from([(), (4,), (2, 6)]),
    max_delay_us=st.sampled_from([0, 200, 1000]),
    levels=st.sampled_from([0, 3]),
    policy=st.builds(
        QueuePolicy,
        on_timeout=st.sampled_from(["reject", "delay"]),
        default_timeout_us=st.sampled_from([0, 300]),
        allow_override=st.booleans(),
        max_size=st.sampled_from([0, 4]),
    ),
    count=st.integers(1, 2),
    work_us=st.sampled_from([1, 150, 600]),
    preserve_ordering=st.booleans(),
)
def test_whatever_comes_nothing_is_lost_late_too_large_or_mixed(
    asks: list[Ask],
    preferred: tuple[int, ...],
    max_delay_us: int,
    levels: int,
    policy: QueuePolicy,
    count: int,
    work_us: int,
    preserve_ordering: bool,
) -> None:
    batching = DynamicBatching(preferred, max_delay_us, preserve_ordering, levels, 2 if levels else 0, policy)
    room = Room(batching, work_us=work_us, count=count)
    requests = {
        str(n): ask(n, asked.rows, asked.width, priority=asked.priority, timeout_us=asked.timeout_us)
        for n, asked in enumerate(asks)
    }

    async def main() -> None:
        servables = await room.open()
        async with asyncio.TaskGroup() as tasks:
            for (name, request), asked in zip(requests.items(), asks, strict=True):
                tasks.create_task(room.ask(servables, request, asked.at_us, asked.cancel_us), name=name)
        await asyncio.sleep(0.01)
        servable = servables.find("m")
        assert (servable.num_open, servable.scheduler.num_waiting) == (0, 0)
        statistics = servable.statistics
        assert statistics.success.count + statistics.fail.count == len(asks)
        await servables.close()

    run(main())
    assert set(room.outcomes) == set(requests), "every request has one outcome"
    check_batches(room)
    for name, asked in zip(requests, asks, strict=True):
        check_times(room, name, asked)
    if not levels and not (policy.on_timeout == "delay" and policy.default_timeout_us + policy.allow_override):
        order = sorted(room.starts, key=lambda name: room.starts[name])
        arrivals = [asks[int(name)].at_us for name in order]
        assert all(room.starts[a] == room.starts[b] or x <= y for a, b, x, y in _pairs(order, arrivals))


def check_batches(room: Room) -> None:
    batches = [batch for instance in room.backend.instances for batch in instance.batches]
    ran = [request.request_id for batch in batches for request in batch]
    assert len(ran) == len(set(ran)), "no request runs twice"
    assert {name for name, outcome in room.outcomes.items() if outcome == "answered"} <= set(ran)
    for batch in batches:
        shapes = {request.inputs["X"].array.shape[1:] for request in batch}
        assert len(shapes) == 1
        assert sum(request.inputs["X"].array.shape[0] for request in batch) <= room.max_rows


def check_times(room: Room, name: str, asked: Ask) -> None:
    policy = room.batching.queue_policy
    # The loop's clock is a float: moments that are equal on paper may be a few nanoseconds apart.
    slack = 10
    arrived = room.zero + asked.at_us * 1000
    timeout_us = policy.default_timeout_us
    if policy.allow_override and asked.timeout_us:
        timeout_us = min(timeout_us or asked.timeout_us, asked.timeout_us)
    if "timeout" in room.outcomes[name]:
        assert timeout_us
        assert policy.on_timeout == "reject"
        late = abs(room.ends[name] - arrived - timeout_us * 1000)
        assert late <= 1000 + slack or room.batching.preserve_ordering
    begun = room.starts.get(name)
    if begun is None:
        return
    if timeout_us and policy.on_timeout == "reject":
        assert begun <= arrived + timeout_us * 1000 + 1000 + slack
    # No instance idles while a request has waited longer than the delay; one that waited for the only instance may wait
    # as long again, see `gathering`.
    gathers = room.count == 1 and not (room.batching.preferred_sizes or room.batching.priority_levels)
    delay = room.batching.max_delay_us * 1000 + 1000
    for intervals in room.busy:
        moment = arrived + delay + slack
        freed = arrived
        for start, end in intervals:
            if start - slack <= moment < end:
                moment = end + slack
            if end <= moment:
                freed = max(freed, end)
        if gathers and freed > arrived:
            moment = max(moment, freed + delay + slack)
        assert begun <= moment + slack, "an instance was idle"


def _pairs(order: list[str], arrivals: list[int]) -> list[tuple[str, str, int, int]]:
    return list(zip(order, order[1:], arrivals, arrivals[1:], strict=False))


async def test_an_error_of_the_batch_reaches_each_of_its_requests() -> None:
    async def broken(instance: MemoryInstance, requests: Sequence[InferRequest], replies: Replies) -> None:
        replies.send(0, InferResponse("m", 1))
        raise ServableError("internal", "out of paper")

    servables = Servables({"memory": MemoryBackend(broken)})
    config = replace(echo_config("m"), max_batch_size=8, dynamic_batching=DynamicBatching())
    await servables.add(config, ModelFolder(None, 1))
    results = await asyncio.gather(*(servables.infer(ask(n)) for n in range(3)), return_exceptions=True)
    assert isinstance(results[0], InferResponse)
    assert [str(result) for result in results[1:]] == ["out of paper"] * 2
    assert results[1] is not results[2]
    statistics = servables.find("m").statistics
    assert (statistics.success.count, statistics.failures["BACKEND"]) == (1, 2)
    await servables.close()
