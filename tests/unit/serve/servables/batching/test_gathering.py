"""Clients that were split into halves, each waiting for the other's batch, become one batch again, if that pays."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from millpond.serve.servables.backend import ModelFolder, Replies
from millpond.serve.servables.batching.gathering import Gathering
from millpond.serve.servables.config import DynamicBatching
from millpond.serve.servables.messages import InferRequest
from millpond.serve.servables.registry import Servables
from tests.support.memory_backend import MemoryBackend, MemoryInstance, echo, echo_config, request_of
from tests.support.virtual_time import clock, run

MS = 1_000_000
DELAY = 5 * MS


def after_a_batch(rows: int = 4, *, began_ns: int = 0) -> Gathering:
    gathering = Gathering(8, DELAY)
    gathering.begun(rows, began_ns)
    return gathering


def test_half_a_batch_waits_for_those_of_the_last_one_until_they_are_there() -> None:
    gathering = after_a_batch(3)
    assert gathering.holds(4, 30 * MS)
    assert (gathering.goal, gathering.until_ns) == (7, 35 * MS)
    assert gathering.holds(6, 32 * MS)
    assert not gathering.holds(7, 33 * MS)
    assert gathering.until_ns == 0


def test_it_waits_no_longer_than_the_delay() -> None:
    gathering = after_a_batch()
    assert gathering.holds(4, 30 * MS)
    assert gathering.holds(4, 35 * MS - 1)
    assert not gathering.holds(4, 35 * MS)


def test_a_whole_batch_and_one_for_an_idle_instance_do_not_wait() -> None:
    assert not after_a_batch().holds(8, 30 * MS)
    idle = after_a_batch()
    idle.idle()
    assert not idle.holds(4, 30 * MS)
    assert not Gathering(8, DELAY).holds(4, 30 * MS)


def test_a_batch_that_others_cannot_join_does_not_wait() -> None:
    assert not after_a_batch().holds(4, 30 * MS, can_grow=False)
    gathering = after_a_batch()
    assert gathering.holds(4, 30 * MS)
    assert not gathering.holds(5, 31 * MS, can_grow=False)  # one of other shapes has come
    assert gathering.until_ns == 0


def play(rows_after: Callable[[int], int], took_ns: Callable[[int], int], batches: int) -> tuple[int, int]:
    """Returns how often and how long batches of four waited, and that in parts of the time in permille."""
    gathering = Gathering(8, DELAY)
    now_ns = num_waits = waited_ns = 0
    for _ in range(batches):
        rows = 4
        if gathering.holds(rows, now_ns):
            num_waits += 1
            rows = rows_after(num_waits)
            if rows < gathering.goal:
                waited_ns += DELAY
                now_ns += DELAY
            assert not gathering.holds(rows, now_ns)
        gathering.begun(rows, now_ns)
        now_ns += took_ns(rows)
    return num_waits, waited_ns * 1000 // now_ns


def test_where_nobody_comes_it_waits_ever_less() -> None:
    num_waits, permille = play(lambda _: 4, lambda _: MS, 20_000)
    assert 5 < num_waits < 12
    assert permille <= 3


def test_where_a_larger_batch_does_no_more_work_it_waits_ever_less() -> None:
    num_waits, _ = play(lambda _: 8, lambda rows: rows * MS, 5_000)
    assert num_waits < 8


def test_where_it_pays_it_waits_every_hundred_milliseconds() -> None:
    num_waits, permille = play(lambda _: 8, lambda _: 30 * MS, 1_000)
    assert num_waits == pytest.approx(30_000 / 120, rel=0.2)
    assert permille == 0


def test_whole_batches_of_others_do_not_make_it_look_poor() -> None:
    gathering = Gathering(8, DELAY)
    now_ns = num_waits = 0
    for _ in range(50):
        for _ in range(10):  # a client that sends whole batches keeps the model busy all the time
            gathering.begun(8, now_ns)
            now_ns += 30 * MS
        gathering.begun(4, now_ns)
        now_ns += 28 * MS
        if gathering.holds(4, now_ns):
            num_waits += 1
            now_ns += 3 * MS
            assert not gathering.holds(8, now_ns)
            gathering.begun(8, now_ns)
            now_ns += 34 * MS
    assert num_waits == 50


def test_two_halves_of_clients_become_one_batch() -> None:
    async def main() -> list[int]:
        async def work(instance: MemoryInstance, requests: Sequence[InferRequest], replies: Replies) -> None:
            await asyncio.sleep(0.030)
            await echo(instance, requests, replies)

        backend = MemoryBackend(work)
        servables = Servables({"memory": backend}, clock=clock)
        batching = DynamicBatching(preferred_sizes=(8,), max_delay_us=5000)
        await servables.add(
            replace(echo_config("m"), max_batch_size=8, dynamic_batching=batching), ModelFolder(None, 1)
        )

        async def client(begins_s: float) -> None:
            await asyncio.sleep(begins_s)
            for _ in range(20):
                await servables.infer(request_of("m", [[1]]))
                await asyncio.sleep(0.001)

        await asyncio.gather(*(client(0.0 if number < 5 else 0.020) for number in range(8)))
        await servables.close()
        return [len(batch) for batch in backend.instances[0].batches]

    sizes = run(main())
    assert sizes[:2] == [5, 8]
    assert set(sizes[2:-1]) == {8}
