"""Bodies are read where a worker reads them: places are lent, sent without a copy, and fall free when nobody looks."""

from __future__ import annotations

import gc
import os
import random

import numpy as np
import pytest

from millpond.serve.servables.tensors import Tensor
from millpond.serve.workers.arena import ArenaReader, ArenaWriter, make_file
from millpond.serve.workers.tensor_wire import TensorPort

ARENA_BYTES = 1 << 20
INLINE_BYTES = 64


class Sides:
    """A gateway's port and its worker's."""

    def __init__(self) -> None:
        files = make_file(ARENA_BYTES), make_file(ARENA_BYTES)
        self.writer = ArenaWriter(files[0], ARENA_BYTES)
        self.gateway = TensorPort(self.writer, ArenaReader(files[1], ARENA_BYTES), INLINE_BYTES, writable=False)
        writer = ArenaWriter(files[1], ARENA_BYTES)
        self.worker = TensorPort(writer, ArenaReader(files[0], ARENA_BYTES), INLINE_BYTES, writable=True)
        for file in files:
            os.close(file)

    def used_bytes(self) -> int:
        gc.collect()
        self.gateway.release(self.worker.reader.take_freed())
        self.gateway.loans.lend(ARENA_BYTES * 2)  # too large: only looks at what was dropped
        return self.writer.used_bytes


@pytest.fixture
def sides() -> Sides:
    return Sides()


def test_a_view_of_a_loan_is_sent_without_a_copy(sides: Sides) -> None:
    lent = sides.gateway.loans.lend(1000)
    assert lent is not None
    body = lent[40:].data
    body[:] = bytes(range(240)) * 4
    tensor = Tensor("x", "FP32", np.ndarray((4, 30), np.float32, body, 24))
    used = sides.writer.used_bytes
    wire = sides.gateway.pack(tensor)
    assert sides.writer.used_bytes == used
    seen = sides.worker.unpack(wire)
    assert seen.array.tobytes() == tensor.array.tobytes()
    seen.array[0, 0] = 7.0  # the same memory
    assert tensor.array[0, 0] == 7.0


@pytest.mark.parametrize("order", ["worker first", "gateway first"])
def test_a_loan_ends_when_neither_side_looks(sides: Sides, order: str) -> None:
    lent = sides.gateway.loans.lend(4096)
    assert lent is not None
    tensors = [Tensor("x", "UINT8", lent[at : at + 1024]) for at in (0, 1024)]
    seen = [sides.worker.unpack(sides.gateway.pack(tensor)) for tensor in tensors]
    del lent
    for side in (seen, tensors) if order == "worker first" else (tensors, seen):
        assert sides.used_bytes() >= 4096
        side.clear()
    assert sides.used_bytes() == 0


def test_what_cannot_be_sent_in_place_is_copied(sides: Sides) -> None:
    lent = sides.gateway.loans.lend(4096)
    assert lent is not None
    lent[:] = np.arange(4096) % 251
    odd = np.ndarray((64,), np.float32, lent.data, 3)
    across = lent.reshape(64, 64).T
    twice = [Tensor("x", "UINT8", lent[:512])] * 2
    elsewhere = np.arange(512, dtype=np.uint8)
    for tensor in (Tensor("a", "FP32", odd), Tensor("b", "UINT8", across), *twice, Tensor("c", "UINT8", elsewhere)):
        assert sides.worker.unpack(sides.gateway.pack(tensor)).array.tobytes() == tensor.array.tobytes()


def test_a_message_that_was_not_sent_gives_its_places_back(sides: Sides) -> None:
    lent = sides.gateway.loans.lend(4096)
    assert lent is not None
    wire = sides.gateway.pack(Tensor("x", "UINT8", lent))
    sides.gateway.discard([wire])
    assert sides.gateway.pack(Tensor("x", "UINT8", lent)).offset == wire.offset
    sides.gateway.discard([wire])
    del lent
    assert sides.used_bytes() == 0


def test_no_place_is_lost_or_given_twice(sides: Sides) -> None:
    chance = random.Random(5)
    held: list[tuple[Tensor, bytes]] = []
    for _ in range(2000):
        size = chance.randrange(INLINE_BYTES + 1, 40_000)
        array = sides.gateway.loans.lend(size) if chance.random() < 0.6 else np.empty(size, np.uint8)
        if array is not None:
            array[:] = chance.randrange(256)
            tensor = Tensor("x", "UINT8", array)
            wire = sides.gateway.pack(tensor)
            held.append((sides.worker.unpack(wire), array.tobytes()))
            if chance.random() < 0.3:
                held.append((tensor, array.tobytes()))
        del array
        chance.shuffle(held)
        for _ in range(chance.randrange(3)):
            if held:
                kept, expected = held.pop()
                assert kept.array.tobytes() == expected
        sides.gateway.release(sides.worker.reader.take_freed())
    held.clear()
    del kept, tensor
    assert sides.used_bytes() == 0
