"""What every fuzzer has, and how its requests are sent: many at a time, beside clients that must not notice."""

from __future__ import annotations

import asyncio
import itertools
import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence

from tests.support.fuzzing.web import Answer, HttpRequest, ask, send_badly

CLIENTS = 16
BAD_SHARE = 0.1  # of the requests that are broken as HTTP or HTTP/2, not only in what they say


class Fuzzer(ABC):
    """One protocol's hostile client.

    Attributes:
        name: For messages.
        harms: Names of fuzzers whose good client may notice this one, by the protocol's own rules.
        seen: How often each outcome came.
    """

    name: str
    harms: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()

    @abstractmethod
    async def send(self, rng: random.Random) -> None:
        """Sends one request and asserts that the answer is one that this protocol allows."""

    @abstractmethod
    async def good(self) -> None:
        """Sends a right request and asserts the right answer."""

    async def close(self) -> None:  # noqa: B027
        """Frees what it holds."""


class HttpFuzzer(Fuzzer):
    """A protocol over HTTP.

    Args:
        address: "host:port".
        failures: Status codes from 500 on that may be the answer to what is sent.
    """

    def __init__(self, address: str, failures: frozenset[int] = frozenset((503,))) -> None:
        super().__init__()
        self.address = address
        self.failures = failures

    @abstractmethod
    def make(self, rng: random.Random) -> HttpRequest:
        """Returns a request that is wrong in most cases."""

    @abstractmethod
    def judge(self, request: HttpRequest, answer: Answer) -> None:
        """Asserts that an answer is one that this protocol may give to the request."""

    async def send(self, rng: random.Random) -> None:
        request = self.make(rng)
        if rng.random() < BAD_SHARE:
            answer = await send_badly(self.address, request, rng)
            assert answer is None or answer.status < 500 or answer.status in self.failures, (answer, request)
            self.seen[f"broken: {answer.status if answer else 'closed'}"] += 1
            return
        answer = await ask(self.address, request)
        self.seen[str(answer.status)] += 1
        try:
            self.judge(request, answer)
        except Exception as error:
            shown = f"{request.method} {request.path[:200]} {request.headers} {request.body[:600]!r}"
            raise AssertionError(f"{self.name}: {shown} -> {answer.status} {answer.body[:400]!r}") from error


async def fuzz(fuzzer: Fuzzer, count: int, seed: int) -> None:
    """Sends so many requests, `CLIENTS` at a time."""
    numbers = iter(range(count))
    kinds = itertools.count(seed * 1000)

    async def client() -> None:
        rng = random.Random(f"{fuzzer.name} {next(kinds)}")
        for _ in numbers:
            await fuzzer.send(rng)

    async with asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(client())


class Bystanders:
    """Good clients of all protocols, one right request after another for as long as the context lasts."""

    def __init__(self, fuzzers: Sequence[Fuzzer]) -> None:
        self._fuzzers = fuzzers
        self.num_served: Counter[str] = Counter()

    async def __aenter__(self) -> Bystanders:
        self._stop = asyncio.Event()
        self._tasks = [asyncio.create_task(self._ask(fuzzer)) for fuzzer in self._fuzzers]
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        self._stop.set()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        if kind is None:
            for result in results:
                if isinstance(result, BaseException):
                    raise result

    async def _ask(self, fuzzer: Fuzzer) -> None:
        while True:
            await fuzzer.good()
            self.num_served[fuzzer.name] += 1
            if self._stop.is_set():
                return
            await asyncio.sleep(0.05)
