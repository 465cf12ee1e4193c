"""When the event loop stays awake for a worker's answer, and when it sleeps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from millpond.serve.workers.lookout import Lookout

US = 1000


class Waiting:
    """A worker whose answers take as long as told, on a clock that goes on by 10 us a look."""

    def __init__(self, num_processors: int = 2) -> None:
        self.now_ns = 0
        self.is_open = False
        self.num_looks = 0
        self.lookout = Lookout(self.is_worth_it, self.clock, num_processors)

    def clock(self) -> int:
        return self.now_ns

    def is_worth_it(self) -> bool:
        self.num_looks += 1
        self.now_ns += 10 * US
        return self.is_open

    def answered(self, taken_us: int, times: int = 1, *, was_alone: bool = True) -> None:
        for _ in range(times):
            began_ns = self.now_ns
            self.now_ns += taken_us * US
            self.lookout.ended(began_ns, was_alone=was_alone)

    async def looks(self, until: Callable[[], bool] = lambda: False) -> int:
        """Sends something, and returns how often the loop looked for its answer."""
        self.num_looks, self.is_open = 0, True
        self.lookout.begin(self.now_ns)
        for _ in range(100):
            await asyncio.sleep(0)
            self.is_open = not until()
        return self.num_looks


async def test_short_answers_are_looked_for_a_little_longer_than_they_take() -> None:
    waiting = Waiting()
    waiting.answered(60, 100)
    assert 8 <= await waiting.looks() <= 10


async def test_an_answer_that_was_held_up_changes_little() -> None:
    waiting = Waiting()
    waiting.answered(60, 100)
    waiting.answered(50_000, 3)
    assert await waiting.looks() > 5


async def test_looking_ends_with_the_answer_or_with_another_request() -> None:
    waiting = Waiting()
    waiting.answered(60, 100)
    assert await waiting.looks(lambda: waiting.num_looks >= 3) == 4


async def test_a_second_request_while_one_looks_does_not_look_twice() -> None:
    waiting = Waiting()
    waiting.answered(60, 100)
    waiting.is_open = True
    waiting.lookout.begin(waiting.now_ns)
    assert await waiting.looks() <= 10


@pytest.mark.parametrize("case", ["unknown", "slow", "slow of late", "several clients", "one processor"])
async def test_otherwise_the_loop_sleeps(case: str) -> None:
    waiting = Waiting(1 if case == "one processor" else 2)
    if case != "unknown":
        waiting.answered(5000 if case == "slow" else 60, 100)
    if case == "slow of late":
        waiting.answered(5000, 40)
    if case == "several clients":
        waiting.answered(60, was_alone=False)
    assert await waiting.looks() == 0
