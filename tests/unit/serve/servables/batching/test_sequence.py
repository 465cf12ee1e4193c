"""Sequence batching in virtual time, against what each sequence should have seen had it been alone."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millpond.serve.servables.backend import ModelFolder, Replies
from millpond.serve.servables.config import Control, InstanceGroup, SequenceBatching, SequenceStateSpec
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.limits import ServableLimits
from millpond.serve.servables.messages import InferRequest, InferResponse, SequenceRef
from millpond.serve.servables.registry import Servables
from millpond.serve.servables.tensors import Tensor, TensorSpec
from tests.support.memory_backend import MemoryBackend, MemoryInstance, echo_config, request_of, tensor
from tests.support.virtual_time import clock, run

CONTROLS = (
    Control("START", "start", "INT32", (0, 1)),
    Control("END", "end", "FP32", (0, 1)),
    Control("READY", "ready", "BOOL", (0, 1)),
    Control("ID", "corrid", "UINT64"),
)


def value(request: InferRequest, name: str) -> int:
    array = request.inputs[name].array
    assert array.shape == (1, 1)
    return int(array[0, 0])


@dataclass
class Room:
    """A servable that adds up what each of its rows, or each id, has seen since its START."""

    batching: SequenceBatching
    count: int = 1
    max_rows: int = 4
    by_row: bool = False
    work_us: int = 100
    concurrency: int = 1
    limits: ServableLimits = field(default_factory=ServableLimits)

    async def __aenter__(self) -> Room:
        self.sums: dict[object, int] = {}
        self.open_keys: set[object] = set()
        self.backend = MemoryBackend(self.work, concurrency=self.concurrency)
        self.servables = Servables({"memory": self.backend}, self.limits, clock=clock)
        groups = (InstanceGroup("g", self.count),)
        config = replace(
            echo_config("m", dims=(1,)),
            max_batch_size=self.max_rows,
            sequence_batching=self.batching,
            instance_groups=groups,
        )
        await self.servables.add(config, ModelFolder(None, 1))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.servables.close()

    async def work(self, instance: MemoryInstance, requests: Sequence[InferRequest], replies: Replies) -> None:
        keys = {value(request, "ID") for request in requests if value(request, "READY")}
        assert not self.open_keys & keys, "two requests of a sequence at once"
        self.open_keys |= keys
        await asyncio.sleep(self.work_us / 1e6)
        self.open_keys -= keys
        number = self.backend.instances.index(instance)
        for row, request in enumerate(requests):
            if not value(request, "READY"):
                replies.send(row, InferResponse("m", 1))
                continue
            key = (number, row if self.by_row else value(request, "ID"))
            before = 0 if value(request, "START") else self.sums[key]
            self.sums[key] = before + value(request, "X")
            output = tensor("X", [[self.sums[key]]])
            replies.send(row, InferResponse("m", 1, {"X": output}))

    async def ask(self, key: int | str, number: int, flags: str = "") -> int:
        ref = SequenceRef(key, "s" in flags, "e" in flags)
        response = await self.servables.infer(request_of("m", [[number]], sequence=ref))
        return int(response.outputs["X"].array[0, 0])


DIRECT = SequenceBatching("direct", controls=CONTROLS)
OLDEST = SequenceBatching("oldest", controls=CONTROLS, max_candidates=3)


@settings(max_examples=60, deadline=None)
@given(
    sequences=st.lists(
        st.tuples(st.lists(st.integers(0, 50), min_size=1, max_size=5), st.integers(0, 300)), min_size=1, max_size=12
    ),
    is_direct=st.booleans(),
    count=st.integers(1, 3),
    delay_us=st.sampled_from([0, 150]),
    work_us=st.sampled_from([1, 70]),
    pipelined=st.booleans(),
    concurrency=st.integers(1, 2),
)
def test_every_sequence_sees_itself_alone(
    sequences: list[tuple[list[int], int]],
    is_direct: bool,
    count: int,
    delay_us: int,
    work_us: int,
    pipelined: bool,
    concurrency: int,
) -> None:
    batching = replace(DIRECT if is_direct else OLDEST, max_delay_us=delay_us, minimum_slot_utilization=0.6)

    async def main() -> Room:
        async with Room(batching, count=count, by_row=is_direct, work_us=work_us, concurrency=concurrency) as room:

            async def client(key: int, numbers: list[int], at_us: int) -> list[int]:
                await asyncio.sleep(at_us / 1e6)
                asked = []
                for index, number in enumerate(numbers):
                    flags = "s" * (index == 0) + "e" * (index == len(numbers) - 1)
                    asked.append(asyncio.create_task(room.ask(key, number, flags)))
                    await asyncio.sleep(0)
                    if not pipelined:
                        await asked[-1]
                return await asyncio.gather(*asked)

            results = await asyncio.gather(*(client(n + 1, *sequence) for n, sequence in enumerate(sequences)))
            for (numbers, _), sums in zip(sequences, results, strict=True):
                assert sums == np.cumsum(numbers).tolist()
            servable = room.servables.find("m")
            assert (servable.num_open, servable.scheduler.num_waiting, servable.scheduler.is_idle) == (0, 0, True)
            assert servable.statistics.inference_count == sum(len(numbers) for numbers, _ in sequences)
            return room

    check_places(run(main()), [numbers for numbers, _ in sequences], is_direct=is_direct)


def check_places(room: Room, sequences: list[list[int]], *, is_direct: bool) -> None:
    homes: dict[int, set[object]] = defaultdict(set)
    flags: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for instance in room.backend.instances:
        for batch in instance.batches:
            assert len(batch) <= room.max_rows
            real = [value(request, "ID") for request in batch if value(request, "READY")]
            assert real
            assert len(real) == len(set(real)), "one request of a sequence at a time"
            for row, request in enumerate(batch):
                if value(request, "READY"):
                    homes[value(request, "ID")].add((instance.name, row if is_direct else None))
                    flags[value(request, "ID")].append((value(request, "START"), value(request, "END")))
    for number, numbers in enumerate(sequences):
        assert len(homes[number + 1]) == 1, "a sequence stays where it is"
        last = len(numbers) - 1
        assert flags[number + 1] == [(int(index == 0), int(index == last)) for index in range(len(numbers))]


def test_rows_are_those_of_the_places_also_without_a_ready_signal() -> None:
    async def main() -> None:
        batching = replace(DIRECT, controls=CONTROLS[3:], max_delay_us=1000, minimum_slot_utilization=1.0)

        async def work(instance: MemoryInstance, requests: Sequence[InferRequest], replies: Replies) -> None:
            for row in range(len(requests)):
                replies.send(row, InferResponse("m", 1, {"X": tensor("X", [[row]])}))

        async with Room(batching) as room:
            room.backend.work = work
            assert await asyncio.gather(*(room.ask(key, 0, "s") for key in (7, 8, 9))) == [0, 1, 2]
            asked = []
            for key in (9, 7, 8):
                asked.append(asyncio.create_task(room.ask(key, 0)))
                await asyncio.sleep(0.00001)
            assert await asyncio.gather(*asked) == [2, 0, 1]
            assert [len(batch) for batch in room.backend.instances[0].batches] == [3, 3]

    run(main())


def test_a_request_that_fits_no_sequence_is_told_why() -> None:
    async def main() -> None:
        async with Room(OLDEST) as room:
            for request, text in (
                (
                    request_of("m", [[1]]),
                    "inference request to model 'm' must specify a non-zero or non-empty correlation ID",
                ),
                (
                    request_of("m", [[1]], sequence=SequenceRef(2000)),
                    "inference request for sequence 2000 to model 'm' must specify the START flag on the first request "
                    "of the sequence",
                ),
                (
                    request_of("m", [[1], [2]], sequence=SequenceRef(5, start=True)),
                    "inference request to model 'm' must specify batch-size 1 due to requirements of sequence batcher",
                ),
                (
                    request_of("m", [[1]], sequence=SequenceRef("name", start=True)),
                    "inference request to model 'm' must specify an integer correlation ID",
                ),
                (
                    request_of("m", [[1]], sequence=SequenceRef(2**64, start=True)),
                    "the correlation ID of a request to model 'm' is not in the range of UINT64",
                ),
            ):
                with pytest.raises(ServableError) as caught:
                    await room.servables.infer(request)
                assert (caught.value.code, caught.value.message) == ("invalid_argument", text)
            assert await room.ask(7, 3, "se") == 3
            with pytest.raises(ServableError, match="must specify the START flag"):
                await room.ask(7, 3)

    run(main())


def test_start_in_the_middle_begins_anew_in_the_same_place() -> None:
    async def main() -> None:
        async with Room(DIRECT, by_row=True) as room:
            assert [await room.ask(1, 5, "s"), await room.ask(1, 5), await room.ask(1, 2, "s")] == [5, 10, 2]
            assert await room.ask(1, 2, "e") == 4

    run(main())


def test_an_idle_sequence_ends_and_gives_its_place_to_the_next_in_line() -> None:
    async def main() -> None:
        async with Room(replace(DIRECT, max_idle_us=1000), max_rows=1, by_row=True) as room:
            assert await room.ask(1, 5, "s") == 5
            begun = clock()
            assert await room.ask(2, 6, "s") == 6
            assert 1.0 <= (clock() - begun) / 1e6 <= 1.3
            with pytest.raises(ServableError, match="sequence 1 to model 'm' must specify the START flag"):
                await room.ask(1, 5)
            assert await room.ask(2, 6, "e") == 12

    run(main())


def test_more_sequences_than_allowed_are_refused() -> None:
    async def main() -> None:
        async with Room(OLDEST, limits=ServableLimits(max_sequences=2)) as room:
            await room.ask(1, 0, "s")
            await room.ask(2, 0, "s")
            with pytest.raises(ServableError, match="Exceeds maximum queue size"):
                await room.ask(3, 0, "s")
            await room.ask(1, 0, "e")
            await room.ask(3, 0, "s")

    run(main())


def test_a_request_that_is_given_up_leaves_the_sequence_whole() -> None:
    async def main() -> None:
        async with Room(OLDEST, work_us=1000) as room:
            first = asyncio.create_task(room.ask(1, 1, "s"))
            await asyncio.sleep(0)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.0005):
                    await room.ask(1, 100)
            assert await first == 1
            assert await room.ask(1, 2) == 3
            last = asyncio.create_task(room.ask(1, 5))
            await asyncio.sleep(0)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.0005):
                    await room.ask(1, 100, "e")
            assert await last == 8
            assert room.servables.find("m").scheduler.is_idle

    run(main())


def test_a_crash_ends_the_sequences_of_its_instance() -> None:
    async def main() -> None:
        async with Room(OLDEST, work_us=1000) as room:
            await room.ask(1, 1, "s")

            async def crash(instance: MemoryInstance, requests: Sequence[InferRequest], replies: Replies) -> None:
                raise ServableError("unavailable", "the worker died")

            room.backend.work = crash
            with pytest.raises(ServableError, match="the worker died"):
                await room.ask(1, 1)
            room.backend.work = room.work
            with pytest.raises(ServableError, match="START flag"):
                await room.ask(1, 1)
            assert await room.ask(1, 1, "s") == 1

    run(main())


def test_a_sequence_stays_with_its_version_while_a_new_one_takes_over() -> None:
    async def main() -> None:
        async with Room(OLDEST) as room:
            assert await room.ask(1, 1, "s") == 1
            config = room.servables.find("m").config
            await room.servables.add(config, ModelFolder(None, 1))
            assert await room.ask(2, 10, "s") == 10
            assert await room.ask(1, 1) == 2
            assert await room.ask(1, 1, "e") == 3
            old, new = room.backend.instances
            assert (len(old.batches), len(new.batches)) == (3, 1)
            await room.servables.settled()
            assert old.is_closed

    run(main())


STATE = SequenceStateSpec("SUM_IN", "SUM_OUT", "INT32", (1,), Tensor("SUM_IN", "INT32", np.array([100], np.int32)))


@pytest.mark.parametrize("strategy", ["direct", "oldest"])
def test_states_are_kept_between_requests_and_not_shown(strategy: str) -> None:
    async def main() -> None:
        batching = SequenceBatching(strategy, controls=CONTROLS[:3], states=(STATE,))  # type: ignore[arg-type]

        async def work(instance: MemoryInstance, requests: Sequence[InferRequest], replies: Replies) -> None:
            for index, request in enumerate(requests):
                before, more = request.inputs["SUM_IN"].array, request.inputs["X"].array
                total = tensor("SUM_OUT", before + more)  # type: ignore[operator]  # np.generic has no sums
                assert request.outputs in (None, ("X", "SUM_OUT"))
                outputs = {"X": msgspec.structs.replace(total, name="X"), "SUM_OUT": total}
                replies.send(index, InferResponse("m", 1, outputs))

        async with Room(batching) as room:
            room.backend.work = work
            for key in (1, 2):
                for step, flags in enumerate(("s", "", "e"), start=1):
                    ref = SequenceRef(key, "s" in flags, "e" in flags)
                    outputs = ("X",) if step == 2 else None
                    request = request_of("m", [[key]], sequence=ref, outputs=outputs)
                    response = await room.servables.infer(request)
                    assert {name: t.array.tolist() for name, t in response.outputs.items()} == {
                        "X": [[100 + key * step]]
                    }

    run(main())


def test_an_iterative_request_is_executed_until_its_model_is_done() -> None:
    async def main() -> None:
        batching = SequenceBatching(
            "oldest", controls=CONTROLS[:1], states=(replace(STATE, initial=None),), iterative=True
        )
        seen: list[list[tuple[int, int]]] = []

        async def work(instance: MemoryInstance, requests: Sequence[InferRequest], replies: Replies) -> None:
            seen.append([(value(request, "X"), value(request, "START")) for request in requests])
            await asyncio.sleep(0.001)
            for index, request in enumerate(requests):
                done = tensor("SUM_OUT", request.inputs["SUM_IN"].array + 1)  # type: ignore[operator]
                is_last = value(request, "X") == int(done.array[0, 0])
                outputs = {"X": msgspec.structs.replace(done, name="X"), "SUM_OUT": done}
                replies.send(index, InferResponse("m", 1, outputs, final=is_last))
                if not is_last:
                    replies.reschedule(index)

        room = Room(batching)
        async with room:
            room.backend.work = work
            config = replace(room.servables.find("m").config, decoupled=True)
            await room.servables.add(config, ModelFolder(None, 1))

            async def client(rounds: int) -> list[int]:
                stream = room.servables.stream(request_of("m", [[rounds]]))
                return [int(response.outputs["X"].array[0, 0]) async for response in stream]

            assert await asyncio.gather(client(3), client(1), client(2)) == [[1, 2, 3], [1], [1, 2]]
        assert seen == [[(3, 1), (1, 1), (2, 1)], [(3, 0), (2, 0)], [(3, 0)]]

    run(main())


def test_string_ids_and_sequences_without_batching() -> None:
    async def main() -> None:
        batching = SequenceBatching("direct", controls=(Control("ID", "corrid", "BYTES"),))

        async def work(instance: MemoryInstance, requests: Sequence[InferRequest], replies: Replies) -> None:
            (request,) = requests
            assert request.inputs["ID"].array.tolist() == [b"name"]
            replies.send(0, InferResponse("m", 1))

        servables = Servables({"memory": MemoryBackend(work)}, clock=clock)
        spec = TensorSpec("X", "INT32", (1,))
        config = replace(echo_config("m"), inputs=(spec,), sequence_batching=batching)
        await servables.add(config, ModelFolder(None, 1))
        await servables.infer(request_of("m", [1], sequence=SequenceRef("name", start=True, end=True)))
        await servables.close()

    run(main())
