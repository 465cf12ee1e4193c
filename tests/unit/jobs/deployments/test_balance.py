from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from millpond.api.deployment import GatewaySpec
from millpond.jobs.deployments.balance import Backend, Balancer, NoReplicaError


def balancer(*versions: str, **limits: float) -> Balancer:
    made = Balancer(GatewaySpec(**{"queue_timeout_s": 5.0} | limits))  # type: ignore[arg-type]
    for number, version in enumerate(versions):
        made.add(Backend(f"b{number}", version, "127.0.0.1", 1, is_open=True))
    made.set_weights(dict.fromkeys(versions, 1))
    return made


async def test_any_stretch_of_requests_is_split_by_weight() -> None:
    made = balancer("a", "b")
    made.set_weights({"a": 90, "b": 10})
    chosen = []
    for _ in range(1000):
        backend = await made.take()
        chosen.append(backend.version)
        made.give_back(backend)
    assert all(Counter(chosen[start : start + 10]) == {"a": 9, "b": 1} for start in range(0, 1000, 10))


async def test_the_least_busy_replica_is_taken() -> None:
    made = balancer("a", "a", "a")
    taken = [await made.take() for _ in range(6)]
    assert Counter(backend.uid for backend in taken) == {"b0": 2, "b1": 2, "b2": 2}
    made.give_back(taken[1])
    assert (await made.take()) is taken[1]


async def test_who_waits_is_served_in_order() -> None:
    made = balancer("a", concurrency=1)
    first = await made.take()
    order: list[int] = []

    async def wait(number: int) -> None:
        backend = await made.take()
        order.append(number)
        made.give_back(backend)

    async with asyncio.TaskGroup() as group:
        for number in range(5):
            group.create_task(wait(number))
            await asyncio.sleep(0)
        assert made.num_waiting == 5
        made.give_back(first)
    assert order == [0, 1, 2, 3, 4]
    assert made.backends["b0"].in_flight == 0


async def test_a_full_queue_refuses_at_once_and_a_long_wait_ends() -> None:
    made = balancer("a", concurrency=1, max_queue=1, queue_timeout_s=0.05)
    await made.take()
    waiting = asyncio.create_task(made.take())
    await asyncio.sleep(0)
    with pytest.raises(NoReplicaError, match="1 requests wait"):
        await made.take()
    with pytest.raises(NoReplicaError, match=r"within 0\.05 s"):
        await waiting
    assert made.num_waiting == 0


async def test_a_version_without_replicas_leaves_its_share_to_the_others() -> None:
    made = balancer("a", "b")
    made.set_open(made.backends["b1"], False)
    for _ in range(5):
        assert (await made.take()).version == "a"
    waiting = asyncio.create_task(made.take("b"))
    await asyncio.sleep(0)
    made.set_open(made.backends["b1"], True)
    assert (await waiting).version == "b"


async def test_a_version_of_weight_nought_is_reached_by_name_alone() -> None:
    made = balancer("a", "b")
    made.set_weights({"a": 1, "b": 0})
    assert {(await made.take()).version for _ in range(10)} == {"a"}
    assert (await made.take("b")).version == "b"


async def test_those_that_wait_go_to_whatever_becomes_ready() -> None:
    made = balancer("a", "b")
    for backend in made.backends.values():
        made.set_open(backend, False)
    waiting = asyncio.create_task(made.take())
    await asyncio.sleep(0)
    assert made.num_waiting_for("a") == made.num_waiting_for("b") == 1
    made.set_open(made.backends["b1"], True)
    assert (await waiting).version == "b"


async def test_a_replica_that_failed_is_asked_again_only_when_it_is_alone() -> None:
    made = balancer("a", "a")
    assert (await made.take(avoided=frozenset({"b0"}))).uid == "b1"
    made.set_open(made.backends["b1"], False)
    assert (await made.take(avoided=frozenset({"b0"}))).uid == "b0"


async def test_requests_that_are_given_up_leave_no_trace() -> None:
    """Random clients that come, wait, give up and end: afterwards nothing is counted and nobody waits."""
    chance = random.Random(4)
    made = balancer("a", "a", "b", concurrency=2, max_queue=50)

    async def client() -> None:
        backend = await made.take()
        try:
            assert backend.in_flight <= 2
            await asyncio.sleep(chance.random() * 0.01)
        finally:
            made.give_back(backend)

    tasks = []
    for _ in range(300):
        tasks.append(asyncio.create_task(client()))
        if chance.random() < 0.5:
            chance.choice(tasks).cancel()
        if chance.random() < 0.3:
            await asyncio.sleep(chance.random() * 0.004)
        if chance.random() < 0.1:
            backend = made.backends[chance.choice(["b0", "b1", "b2"])]
            made.set_open(backend, not backend.is_open)
    for backend in made.backends.values():
        made.set_open(backend, True)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert made.num_waiting == 0
    assert [backend.in_flight for backend in made.backends.values()] == [0, 0, 0]
    assert any(not task.cancelled() and task.exception() is None for task in tasks)


async def test_nobody_waits_for_what_is_being_deleted() -> None:
    made = balancer("a", concurrency=1)
    await made.take()
    waiting = asyncio.create_task(made.take())
    await asyncio.sleep(0)
    made.refuse()
    with pytest.raises(NoReplicaError):
        await waiting
    with pytest.raises(NoReplicaError):
        await made.take()
