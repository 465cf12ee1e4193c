"""Sixty-four clients at a time, a fifth of them cut off: nothing lost, nothing garbled, every block back, memory flat.

The engine process is real and checks its scheduler after every call; the executor is a fake whose tokens are known.
The small run is part of the suite, the long one is marked `stress`.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from millpond.api.request import Request, SamplingParams
from millpond.config.load import make_config
from millpond.inference.engine.client import AsyncEngine
from tests.support.fake_engine import FAKE_ENGINE, write_fake_model
from tests.support.fake_executor import EOS, expected_tokens
from tests.support.waiting import eventually

CLIENTS = 64
MAX_TOKENS = 24
FLAT_BYTES = 12 << 20


def make_prompts() -> list[list[int]]:
    """Forty prompts, half of them with a common beginning."""
    rng = random.Random(1)
    common = [rng.randrange(EOS) for _ in range(40)]
    tails = [[rng.randrange(EOS) for _ in range(rng.randrange(1, 60))] for _ in range(40)]
    return [common + tail if i % 2 else tail for i, tail in enumerate(tails)]


@dataclass
class Load:
    """What the clients share."""

    engine: AsyncEngine
    prompts: list[list[int]] = field(default_factory=make_prompts)
    rng: random.Random = field(default_factory=lambda: random.Random(2))
    num_whole: int = 0
    num_cut: int = 0

    def __post_init__(self) -> None:
        self.numbers = itertools.count()
        self.expected = [expected_tokens(prompt, MAX_TOKENS) for prompt in self.prompts]

    async def run(self, count: int) -> None:
        """Sends `count` requests, `CLIENTS` at a time."""
        numbers = itertools.islice(self.numbers, count)
        await asyncio.gather(*(self.client(numbers) for _ in range(CLIENTS)))

    async def client(self, numbers: Iterator[int]) -> None:
        for number in numbers:
            which = self.rng.randrange(len(self.prompts))
            reading = asyncio.create_task(self.read(number, which))
            if number % 5 == 4:
                await self.cut(reading)
            else:
                await reading

    async def read(self, number: int, which: int) -> None:
        params = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, logprobs=0 if number % 3 else None)
        stream = self.engine.generate(Request(str(number), self.prompts[which], params))
        tokens, text = [], ""
        try:
            async for event in stream:
                assert event.error is None
                tokens += event.token_ids
                text += event.text
        finally:
            await stream.aclose()
        assert tokens == self.expected[which]
        assert text == self.engine.text.tokenizer.decode([token for token in tokens if token != EOS])
        self.num_whole += 1

    async def cut(self, reading: asyncio.Task[None]) -> None:
        await asyncio.sleep(self.rng.random() * 0.05)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        self.num_cut += reading.cancelled()


@pytest.mark.parametrize("num_requests", [200, pytest.param(1000, marks=pytest.mark.stress)])
async def test_streams_are_whole_and_everything_comes_back(num_requests: int, tmp_path: Path) -> None:
    path = write_fake_model(tmp_path, num_blocks=200, max_sequences=32, max_batch_tokens=128, max_queue=64)
    engine = await AsyncEngine.start(make_config({"model.path": path}), command=FAKE_ENGINE)
    try:
        load = Load(engine)
        assert engine.pid is not None
        processes = [psutil.Process(), psutil.Process(engine.pid)]
        await load.run(num_requests // 2)
        gc.collect()
        before = [process.memory_info().rss for process in processes]
        await load.run(num_requests - num_requests // 2)
        await eventually(lambda: engine.stats.num_free_blocks == engine.stats.num_blocks)
        gc.collect()
        after = [process.memory_info().rss for process in processes]
    finally:
        await engine.close()
    assert load.num_whole + load.num_cut == num_requests
    assert load.num_cut >= num_requests // 10
    assert engine.num_requests == engine.stats.num_running == engine.stats.num_waiting == 0
    assert engine.stats.preemptions_total > 0
    assert engine.stats.prefix_hit_tokens_total > 0
    assert all(now - then < FLAT_BYTES for now, then in zip(after, before, strict=True))
