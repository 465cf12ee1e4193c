"""A queue delay is the longest wait: who wakes up late sets out earlier, and a batch that is due goes first of all."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millpond.serve.servables.backend import Ended, ExecutionTiming, Freed, ModelFolder, Replies
from millpond.serve.servables.batching.lead import Lead
from millpond.serve.servables.config import DynamicBatching
from millpond.serve.servables.messages import InferRequest, InferResponse
from millpond.serve.servables.registry import Servables
from tests.support.held_instance import HeldInstance
from tests.support.memory_backend import echo_config, request_of
from tests.support.virtual_time import clock, oversleep, run

US = 1000
DELAY_US = 5000


def test_nobody_sets_out_early_before_somebody_was_late() -> None:
    lead = Lead(DELAY_US * US)
    assert lead.aim(9_000, 0) == 9_000
    lead.was_late(0)
    assert (lead.near_ns, lead.far_ns) == (0, 0)


@given(late_us=st.lists(st.integers(-10, 10_000), min_size=1, max_size=300), delay_us=st.integers(0, 10_000))
def test_the_lead_is_what_was_seen_lately_within_bounds(late_us: list[int], delay_us: int) -> None:
    lead = Lead(delay_us * US)
    for late in late_us:
        lead.was_late(late * US)
    recent = sorted(late_us[-128:])
    assert lead.far_ns == min(max(recent[-1], 0) * US, delay_us * US // 2)
    assert lead.near_ns <= min(lead.far_ns, delay_us * US // 4)
    num_covered = sum(late * US <= lead.near_ns for late in recent)
    assert lead.near_ns == delay_us * US // 4 or num_covered >= 0.9 * len(recent) - 1


@given(
    late_us=st.lists(st.integers(0, 8_000), max_size=20),
    waited_us=st.integers(0, DELAY_US),
    quiet_us=st.integers(0, DELAY_US),
)
def test_what_does_not_go_now_aims_at_a_moment_to_come_and_never_beyond_the_bound(
    late_us: list[int], waited_us: int, quiet_us: int
) -> None:
    lead = Lead(DELAY_US * US)
    for late in late_us:
        lead.was_late(late * US)
    now = 1_000_000 * US
    bound, last = now + (DELAY_US - waited_us) * US, now - min(quiet_us, waited_us) * US
    if waited_us * US < DELAY_US * US - lead.of(now, last):  # it does not go now
        assert now < lead.aim(bound, last) <= bound - lead.near_ns
        assert lead.aim(bound, last) >= bound - lead.far_ns


class Answering(HeldInstance):
    """Answers at once, and knows who came when, in one batch."""

    def __init__(self) -> None:
        self.begun: list[tuple[int, list[int]]] = []

    def begin(
        self, requests: Sequence[InferRequest], replies: Replies, ended: Ended, freed: Freed | None = None
    ) -> None:
        self.begun.append((clock(), [int(request.request_id) for request in requests]))
        for index, request in enumerate(requests):
            replies.send(index, InferResponse(request.model, 1, dict(request.inputs)))
        ended(ExecutionTiming())

    @property
    def waits_us(self) -> list[float]:
        """How long the first of each batch waited."""
        return [(begun - came[0]) / US for begun, came in self.begun]


async def served(instance: HeldInstance, delay_us: int, max_rows: int = 64) -> Servables:
    servables = Servables({"memory": instance}, clock=clock)
    batching = DynamicBatching(max_delay_us=delay_us)
    await servables.add(
        replace(echo_config("m"), max_batch_size=max_rows, dynamic_batching=batching), ModelFolder(None, 1)
    )
    return servables


def ask(servables: Servables) -> asyncio.Task[InferResponse]:
    return asyncio.ensure_future(servables.infer(request_of("m", [[1]], request_id=str(clock()))))


def lone_waits_us(delay_us: int, late_us: float, count: int) -> list[float]:
    instance = Answering()

    async def main() -> None:
        servables = await served(instance, delay_us)
        oversleep(late_us / 1e6)
        for _ in range(count):
            await ask(servables)
        await servables.close()

    run(main())
    assert len(instance.begun) == count
    return instance.waits_us


async def served_with_one_bad_moment(instance: Answering) -> Servables:
    """Twenty lone requests have been served; the machine woke up late once."""
    servables = await served(instance, DELAY_US)
    for number in range(20):
        oversleep(0.004 if number == 3 else 0.0)
        await ask(servables)
    return servables


@pytest.mark.parametrize(("delay_us", "late_us"), [(5000, 200), (5000, 2400), (300, 100)])
def test_a_lone_request_waits_no_longer_than_its_delay_although_the_machine_wakes_up_late(
    delay_us: int, late_us: float
) -> None:
    first, *others = lone_waits_us(delay_us, late_us, 30)
    assert first == pytest.approx(delay_us + late_us, abs=2)  # nothing was known yet
    assert others == pytest.approx([delay_us] * 29, abs=2)


def test_a_short_delay_stays_a_delay_on_a_machine_that_is_always_late() -> None:
    assert lone_waits_us(100, 1000, 5) == pytest.approx([1100, 1050, 1050, 1050, 1050], abs=2)


def test_a_batch_that_grows_is_not_cut_short_by_one_bad_moment() -> None:
    instance = Answering()

    async def main() -> None:
        servables = await served_with_one_bad_moment(instance)
        lone = len(instance.begun)
        asked = []
        for _ in range(55):
            asked.append(ask(servables))
            await asyncio.sleep(100e-6)
        await asyncio.gather(*asked)
        assert instance.waits_us[lone - 1] == pytest.approx(DELAY_US / 2, abs=2)
        assert [len(came) for _, came in instance.begun[lone:]] == [50, 5]
        assert instance.waits_us[lone] == pytest.approx(DELAY_US, abs=101)
        await servables.close()

    run(main())


def test_clients_of_the_last_batch_are_waited_for() -> None:
    instance = Answering()

    async def main() -> None:
        servables = await served_with_one_bad_moment(instance)
        await asyncio.gather(*(ask(servables) for _ in range(3)))
        asked = [ask(servables) for _ in range(2)]
        await asyncio.sleep(0.003)
        await asyncio.gather(ask(servables), *asked)
        assert [len(came) for _, came in instance.begun[20:]] == [3, 3]
        assert instance.waits_us[20:] == pytest.approx([DELAY_US / 2, DELAY_US], abs=2)
        await servables.close()

    run(main())


class Now:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.ns = 1_000_000_000

    def __call__(self) -> int:
        return self.ns


class Holding(HeldInstance):
    """Notes the sizes of batches, and answers when it is told to."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.open: list[tuple[Sequence[InferRequest], Replies, Ended]] = []

    def begin(
        self, requests: Sequence[InferRequest], replies: Replies, ended: Ended, freed: Freed | None = None
    ) -> None:
        self.sizes.append(len(requests))
        self.open.append((requests, replies, ended))

    def finish(self) -> None:
        requests, replies, ended = self.open.pop()
        for index, request in enumerate(requests):
            replies.send(index, InferResponse(request.model, 1, dict(request.inputs)))
        ended(ExecutionTiming())


async def test_a_request_that_comes_when_the_batch_is_due_takes_it_along_before_the_loop_does_anything_else() -> None:
    now, instance = Now(), Holding()
    servables = Servables({"memory": instance}, clock=now)
    batching = DynamicBatching(max_delay_us=60_000_000)
    await servables.add(replace(echo_config("m"), max_batch_size=8, dynamic_batching=batching), ModelFolder(None, 1))
    servable = servables.find("m")
    futures = [asyncio.ensure_future(servable.infer(request_of("m", [[1]]))) for _ in range(2)]
    for _ in range(3):
        await asyncio.sleep(0)
    now.ns += 59_999_999_999
    _, inbox = servable.open(request_of("m", [[1]]))
    assert not instance.sizes
    now.ns += 1
    _, other = servable.open(request_of("m", [[1]]))
    assert instance.sizes == [4]  # without a turn of the loop
    instance.finish()
    assert (await inbox.next()).outputs
    assert (await other.next()).outputs
    await asyncio.gather(*futures)
    await servables.close()
