"""`Gateway`: the state of one serving process, and the part of the engine's client that serving uses.

Owns whether requests are welcome (loading, ready, restarting, draining), how many are open, and the threads that
tokenise. Does not know HTTP: protocol adapters ask it, `launch.py` moves it from state to state.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from typing import Literal, Protocol, TypeVar

from millpond.api.request import EngineInfo, EngineStats, OutputEvent, Request
from millpond.base.errors import EngineDeadError, QueueFullError
from millpond.inference.sampling.grammar_guard import GrammarGuard
from millpond.inference.text import TextModel
from millpond.serve.metrics import ServeMetrics
from millpond.serve.settings import ServeSettings
from millpond.serve.turns import Turns

T = TypeVar("T")

GatewayStatus = Literal["loading", "ready", "restarting", "draining", "stopped"]

_TEXT_THREADS = 2  # tokenising shares the cores with the engine: more threads would only slow its steps
_WHY_NOT = {
    "loading": "The model is still loading.",
    "draining": "The server is shutting down.",
    "stopped": "The engine is closed.",
}


class Engine(Protocol):
    """What serving needs of `millpond.inference.engine.client.AsyncEngine`."""

    @property
    def info(self) -> EngineInfo: ...

    @property
    def text(self) -> TextModel: ...

    @property
    def stats(self) -> EngineStats: ...

    @property
    def state(self) -> str: ...

    def generate(self, request: Request) -> AsyncIterator[OutputEvent]: ...

    async def close(self) -> None: ...


class Gateway:
    """One engine, its settings, and the requests that are open on it.

    Args:
        engine: The engine's client; None while it is being loaded.
        settings: How to serve.
    """

    def __init__(self, engine: Engine | None, settings: ServeSettings) -> None:
        self.engine = engine
        self.settings = settings
        self.metrics = ServeMetrics()
        self.version = version("millpond")
        self.draining = False
        self.load_stage = ""
        self.load_fraction = 0.0
        self._grammars: GrammarGuard | None = None
        self._num_open = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._turns = Turns()
        self._threads = ThreadPoolExecutor(_TEXT_THREADS, thread_name_prefix="text")

    @property
    def status(self) -> GatewayStatus:
        """What the gateway can do now."""
        if self.draining:
            return "draining"
        if self.engine is None or self.engine.state == "starting":
            return "loading"
        if self.engine.state == "ready":
            return "ready"
        return "restarting" if self.engine.state == "restarting" else "stopped"

    def ready_engine(self) -> Engine:
        """Returns the engine. While it restarts it takes requests and lets them wait.

        Raises:
            EngineDeadError: No request can be taken now.
        """
        status = self.status
        if status not in ("ready", "restarting") or self.engine is None:
            raise EngineDeadError(_WHY_NOT[status], fix="Try again shortly.")
        return self.engine

    @contextmanager
    def open_request(self) -> Iterator[None]:
        """Counts a request as open while the block runs.

        Raises:
            QueueFullError: Too many are open.
        """
        if self._num_open >= self.settings.max_open_requests:
            raise QueueFullError(f"{self._num_open} requests are open, which is the limit.", fix="Try again shortly.")
        self._change_open(1)
        try:
            yield
        finally:
            self._change_open(-1)

    async def wait_idle(self, timeout_s: float) -> bool:
        """Waits until no request is open; returns False when the time is up first."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Runs work that would hold up the event loop (tokenising, compiling a grammar) in one of a few threads."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def in_turn(self, work: Callable[[], T]) -> T:
        """Runs work that is short in one of the next turns of the event loop, see `Turns`."""
        return await self._turns.run(work)

    def grammars(self, engine: Engine) -> GrammarGuard:
        """Returns what compiles grammars as the engine will, in a process that may be killed: what is admitted runs."""
        if self._grammars is None:
            info = engine.info
            self._grammars = GrammarGuard(
                engine.text.tokenizer, vocab_size=info.vocab_size, eos_token_ids=info.eos_token_ids
            )
        return self._grammars

    def close(self) -> None:
        """Lets the threads and the grammar worker go."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._grammars is not None:
            self._grammars.close()

    def _change_open(self, amount: int) -> None:
        self._num_open += amount
        self.metrics.open_requests.set(self._num_open)
        if self._num_open:
            self._idle.clear()
        else:
            self._idle.set()
