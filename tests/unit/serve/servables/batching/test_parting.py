"""Clients that all wait for one batch come in two groups where the model does more then, and else stay one."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from millpond.serve.servables.backend import Ended, ExecutionTiming, Freed, ModelFolder, Replies
from millpond.serve.servables.batching.parting import Parting
from millpond.serve.servables.config import DynamicBatching
from millpond.serve.servables.messages import InferRequest, InferResponse
from millpond.serve.servables.registry import Servables
from tests.support.held_instance import HeldInstance
from tests.support.memory_backend import MemoryBackend, MemoryInstance, echo, echo_config, request_of
from tests.support.virtual_time import clock, run

MS = 1_000_000
DELAY = 5 * MS
Cost = Callable[[int], int]


def by_rows(rows: int) -> int:
    return rows * 5 * MS


def by_batch(rows: int) -> int:
    return 24 * MS + rows * 2 * MS


def together(parting: Parting, rows: int, now_ns: int, cost: Cost, *, back_ns: int = 4 * MS) -> int:
    """A batch with all of the clients, who need a while to come back; returns when they are."""
    parting.begun(rows, now_ns)
    now_ns += cost(rows)
    assert not parting.ended(0, now_ns)
    return now_ns + back_ns


def parted(parting: Parting, rows: int, now_ns: int, cost: Cost, count: int) -> tuple[int, list[bool]]:
    """Batches with half of the clients each; returns when they are over, and after which they should come together."""
    found = []
    for _ in range(count):
        parting.begun(rows, now_ns)
        now_ns += cost(rows)
        found.append(parting.ended(rows, now_ns))
    return now_ns, found


def test_after_three_batches_with_all_one_goes_with_half_of_them() -> None:
    parting, now_ns, goals = Parting(DELAY), 0, []
    for _ in range(3):
        now_ns = together(parting, 8, now_ns, by_rows)
        goals.append(parting.goal)
    assert goals == [0, 0, 4]


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_few_rows_are_not_parted(rows: int) -> None:
    parting, now_ns = Parting(DELAY), 0
    for _ in range(10):
        now_ns = together(parting, rows, now_ns, by_rows)
        assert not parting.goal


def tried(cost: Cost) -> tuple[Parting, int, list[bool]]:
    parting, now_ns = Parting(DELAY), 0
    for _ in range(3):
        now_ns = together(parting, 8, now_ns, cost)
    now_ns, found = parted(parting, 4, now_ns, cost, 6)
    return parting, now_ns, found


def test_where_rows_are_the_cost_groups_stay_and_are_made_again_at_once() -> None:
    parting, now_ns, found = tried(by_rows)
    assert not any(found)
    assert parting.keeps(now_ns)
    now_ns = together(parting, 8, now_ns, by_rows)
    assert parting.goal == 4


def test_where_the_batch_is_the_cost_they_come_together_after_one_look_and_stay() -> None:
    parting, now_ns, found = tried(by_batch)
    assert found[:2] == [False, True]  # what the first half costs is known when the second begins
    assert not parting.keeps(now_ns)
    for _ in range(5):
        now_ns = together(parting, 8, now_ns, by_batch)
        assert not parting.goal


def test_what_was_no_use_is_tried_ever_less() -> None:
    parting, now_ns, tries = Parting(DELAY), 0, []
    while now_ns < 1_200_000 * MS:
        now_ns = together(parting, 8, now_ns, by_batch)
        if parting.goal:
            tries.append(now_ns // MS)
            now_ns, _ = parted(parting, 4, now_ns, by_batch, 2)
    gaps = [later - earlier for earlier, later in itertools.pairwise(tries)]
    assert gaps == pytest.approx([500, 500, 2_000, 8_000, 32_000, 128_000, 320_000, 320_000, 320_000], rel=0.1)


def test_what_a_cold_model_cost_is_doubted_soon() -> None:
    parting, now_ns = Parting(DELAY), 0
    for rows_cost in (30, 20, 20):  # of which the first calls pay for what is made once
        now_ns = together(parting, 8, now_ns, lambda rows, each=rows_cost: rows * each * MS)
    assert parting.goal == 4
    asked_at = []
    while now_ns < 1_200 * MS:
        now_ns, found = parted(parting, 4, now_ns, by_batch, 1)
        if found[0]:
            asked_at.append(now_ns // MS)
    assert len(asked_at) == 1  # those who never come together are not held back for each other again and again
    assert asked_at[0] < 1_100
    for _ in range(3):
        now_ns = together(parting, 8, now_ns, by_batch)
    assert parting.goal == 4
    now_ns, found = parted(parting, 4, now_ns, by_batch, 2)
    assert found == [False, True]
    assert not parting.keeps(now_ns)


def test_groups_that_do_more_are_doubted_ever_less() -> None:
    parting, now_ns, _ = tried(by_rows)
    doubts = []
    while now_ns < 60_000 * MS:
        now_ns, found = parted(parting, 4, now_ns, by_rows, 1)
        if found[0]:
            doubts.append(now_ns // MS)
            for _ in range(3):
                now_ns = together(parting, 8, now_ns, by_rows)
    gaps = [later - earlier for earlier, later in itertools.pairwise(doubts)]
    assert gaps == pytest.approx([600, 2_100, 8_100, 20_100, 20_100], rel=0.1)


def test_a_group_that_is_late_once_is_not_taken_for_all() -> None:
    parting, now_ns, _ = tried(by_rows)
    now_ns = together(parting, 4, now_ns, by_rows)
    goals = [parting.goal]
    for _ in range(2):
        now_ns = together(parting, 4, now_ns, by_rows)
        goals.append(parting.goal)
    assert goals == [0, 2, 2]  # only when it was the same twice: fewer clients than before, now they are all


def test_a_pause_of_the_clients_is_not_time_that_groups_would_save() -> None:
    parting, now_ns = Parting(DELAY), 0
    for _ in range(2):
        now_ns = together(parting, 8, now_ns, by_batch)
    now_ns = together(parting, 8, now_ns, by_batch, back_ns=300 * MS)
    for _ in range(3):
        now_ns = together(parting, 8, now_ns, by_batch)
    assert parting.goal == 4
    _, found = parted(parting, 4, now_ns, by_batch, 2)
    assert found == [False, True]


def test_who_asks_after_a_pause_is_not_in_groups() -> None:
    parting, now_ns = Parting(DELAY), 0
    for _ in range(10):
        assert not parting.goal
        now_ns = together(parting, 8, now_ns, by_rows, back_ns=300 * MS)


def answered(cost: Cost, clients: int) -> tuple[int, list[int]]:
    """Returns how many requests were answered in ten seconds, and the sizes of the batches."""

    async def main() -> tuple[int, list[int]]:
        async def work(instance: MemoryInstance, requests: Sequence[InferRequest], replies: Replies) -> None:
            await asyncio.sleep(cost(len(requests)) / 1e9)
            await echo(instance, requests, replies)

        backend = MemoryBackend(work)
        servables = Servables({"memory": backend}, clock=clock)
        batching = DynamicBatching(max_delay_us=5000)
        await servables.add(
            replace(echo_config("m"), max_batch_size=8, dynamic_batching=batching), ModelFolder(None, 1)
        )
        end = clock() + 10_000 * MS

        async def client(number: int) -> int:
            count = 0
            while clock() < end:
                await servables.infer(request_of("m", [[1]]))
                await asyncio.sleep(0.0007 * (number + 1))
                count += 1
            return count

        counts = await asyncio.gather(*(client(number) for number in range(clients)))
        await servables.close()
        return sum(counts), [len(batch) for batch in backend.instances[0].batches]

    return run(main())


@pytest.mark.parametrize("clients", [6, 7])
def test_clients_of_a_model_whose_cost_is_the_rows_keep_it_busy(clients: int) -> None:
    count, sizes = answered(by_rows, clients)
    assert sizes[:4] == [clients, clients, clients, clients // 2]
    assert count == pytest.approx(10_000 / 5, rel=0.02)  # all that the model can do


@pytest.mark.parametrize("clients", [6, 7])
def test_clients_of_a_model_whose_cost_is_the_batch_stay_together(clients: int) -> None:
    count, sizes = answered(by_batch, clients)
    assert sum(size < clients for size in sizes) < 0.05 * len(sizes)
    assert count >= 0.95 * 10_000 * clients / (24 + 2 * clients + 5)


class Holding(HeldInstance):
    """Notes the sizes of batches, and answers when it is told to."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.open: list[tuple[Sequence[InferRequest], Replies, Ended, Freed | None]] = []

    def begin(
        self, requests: Sequence[InferRequest], replies: Replies, ended: Ended, freed: Freed | None = None
    ) -> None:
        self.sizes.append(len(requests))
        self.open.append((requests, replies, ended, freed))

    def finish(self) -> None:
        requests, replies, ended, freed = self.open.pop()
        assert freed is not None
        freed()
        for index, request in enumerate(requests):
            replies.send(index, InferResponse(request.model, 1, dict(request.inputs)))
        ended(ExecutionTiming())


async def test_half_of_them_go_in_the_middle_of_a_turn_of_the_loop() -> None:
    now_ns = 0
    instance = Holding()
    servables = Servables({"memory": instance}, clock=lambda: now_ns)
    batching = DynamicBatching(max_delay_us=60_000_000)
    await servables.add(replace(echo_config("m"), max_batch_size=8, dynamic_batching=batching), ModelFolder(None, 1))
    servable = servables.find("m")
    for _ in range(3):
        for _ in range(8):
            servable.open(request_of("m", [[1]]))
        await asyncio.sleep(0)
        now_ns += 40 * MS
        instance.finish()
        now_ns += 4 * MS
    for _ in range(3):
        servable.open(request_of("m", [[1]]))
    assert instance.sizes == [8, 8, 8]
    servable.open(request_of("m", [[1]]))
    assert instance.sizes == [8, 8, 8, 4]
    for _ in range(4):
        servable.open(request_of("m", [[1]]))
    now_ns += 61_000 * MS
    instance.finish()
    assert instance.sizes == [8, 8, 8, 4, 4]
    instance.finish()
    await servables.close()
