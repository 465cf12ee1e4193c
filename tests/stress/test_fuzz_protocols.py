"""Hostile requests over every protocol of one server: that protocol's error each, and nobody else notices.

A few hundred a protocol are part of the suite, ten thousand are marked `stress`. While one protocol is fuzzed, slow
clients hold connections of all of them, and good clients of all of them get right answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.support.fuzzing.base import Bystanders, Fuzzer, fuzz
from tests.support.fuzzing.over_grpc import MindSporeGrpc, TgiShard, TritonGrpc
from tests.support.fuzzing.over_http import MindSporeRest, OpenAi, TgiHttp, TritonHttp
from tests.support.fuzzing.rooms import FuzzRoom, fuzz_room
from tests.support.fuzzing.web import SlowClients

FLAT_BYTES = 32 << 20
SLOW_EACH = 4
MAKERS: dict[str, Callable[[FuzzRoom], Fuzzer]] = {
    "triton-http": lambda room: TritonHttp(room.at.triton_http, is_strict=room.is_strict),
    "triton-grpc": lambda room: TritonGrpc(room.at.triton_grpc),
    "mindspore-rest": lambda room: MindSporeRest(room.at.mindspore_rest, is_strict=room.is_strict),
    "mindspore-grpc": lambda room: MindSporeGrpc(room.at.mindspore_grpc),
    "tgi-http": lambda room: TgiHttp(room.at.tgi),
    "tgi-shard": lambda room: TgiShard(room.at.shard),
    "openai": lambda room: OpenAi(room.at.openai),
}


@pytest.fixture(scope="module", params=["strict", pytest.param("compatible", marks=pytest.mark.stress)])
def room(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FuzzRoom]:
    with fuzz_room(tmp_path_factory.mktemp("fuzz"), request.param) as room:
        yield room


@pytest.mark.parametrize("protocol", MAKERS)
@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.stress)])
async def test_hostile_requests_have_their_errors_and_harm_nobody(room: FuzzRoom, protocol: str, count: int) -> None:
    fuzzer = MAKERS[protocol](room)
    others = [make(room) for make in MAKERS.values()]
    everyone = [fuzzer, *others]
    unharmed = [one for one in others if one.name not in fuzzer.harms]
    engine = room.engine()
    http = [room.at.openai, room.at.tgi, room.at.triton_http, room.at.mindspore_rest]
    try:
        for one in everyone:
            await one.good()
        async with SlowClients(http, SLOW_EACH), Bystanders(unharmed) as by:
            await fuzz(fuzzer, count // 4, seed=1)
            before = room.memory()
            await fuzz(fuzzer, count - count // 4, seed=2)
            after = room.memory()
        for one in everyone:
            await one.good()
    finally:
        for one in everyone:
            await one.close()
    print(protocol, dict(fuzzer.seen), dict(by.num_served), f"{before >> 20} -> {after >> 20} MiB")
    assert len(fuzzer.seen) >= 3
    assert all(by.num_served[one.name] >= 3 for one in unharmed)
    assert room.server.process.poll() is None
    assert room.engine() == engine
    assert after - before < FLAT_BYTES
