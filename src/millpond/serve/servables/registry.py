"""`Servables`: all servables of a process by name and version, and the one way to ask them.

Owns which versions there are and in which state. A version that is replaced or removed finishes what it accepted while
its successor already answers. Protocols call `infer`, `stream`, `find`, `index` and `statistics`; the repository and
whoever brings servables of its own call `add` and `remove`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from millpond.serve.room import Room
from millpond.serve.servables.backend import Backend, ModelFolder
from millpond.serve.servables.batching.rates import RateLimiter
from millpond.serve.servables.cache import ResponseCache
from millpond.serve.servables.calls import Call, Sink
from millpond.serve.servables.config import ServableConfig
from millpond.serve.servables.errors import WORDS, ServableError
from millpond.serve.servables.limits import ServableLimits
from millpond.serve.servables.loading import load_ensemble, load_servable
from millpond.serve.servables.messages import InferRequest, InferResponse
from millpond.serve.servables.pouring import Poured, Write
from millpond.serve.servables.servable import Servable, ServableState
from millpond.serve.servables.shared import Shared
from millpond.serve.servables.statistics import ServableStatistics

IndexState = Literal["READY", "UNAVAILABLE", "LOADING", "UNLOADING", ""]


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """A line of the index; version 0 and state "" for a model of which only the name is known."""

    name: str
    version: int
    state: IndexState
    reason: str = ""


@dataclass(slots=True)
class _Slot:
    """What is known of one version: the servable that answers, or why there is none."""

    servable: Servable | None
    state: ServableState
    reason: str = ""
    has_failed: bool = False


class Servables:
    """The registry.

    Attributes:
        limits: Its bounds.
        cache: The response cache; None when there is none.

    Args:
        backends: By the name that configurations use.
        limits: Bounds.
        clock: Nanoseconds; another one only in tests.
    """

    def __init__(
        self,
        backends: Mapping[str, Backend],
        limits: ServableLimits | None = None,
        *,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.limits = limits or ServableLimits()
        self._backends = dict(backends)
        self.cache = ResponseCache(self.limits.cache_bytes) if self.limits.cache_bytes > 0 else None
        rates = RateLimiter(self.limits.rate_resources) if self.limits.rate_limit else None
        self._shared = Shared(self.limits, clock, self.cache, rates)
        self._slots: dict[str, dict[int, _Slot]] = {}
        self._newest: dict[str, Servable] = {}  # the version that answers when none is named
        self._leaving: dict[str, list[Servable]] = {}
        self._drains: set[asyncio.Task[None]] = set()
        self._load_locks: dict[str, asyncio.Lock] = {}
        self._is_closed = False

    async def infer(self, request: InferRequest) -> InferResponse:
        """Answers a request to a servable that is not decoupled.

        Raises:
            ServableError: It cannot be answered.
        """
        return await self._for(request).infer(request)

    def submit(self, request: InferRequest, sink: Sink) -> tuple[Servable, Call]:
        """Takes a request whose responses go to a sink; `cancel(call)` of the servable gives it up.

        For protocols that answer without a task of their own.

        Raises:
            ServableError: The request is not accepted.
        """
        servable = self._for(request)
        return servable, servable.submit(request, sink)

    async def stream(self, request: InferRequest) -> AsyncIterator[InferResponse]:
        """Gives the responses of any servable; closing the iterator cancels the request.

        What goes wrong after the request was accepted comes as a response with `error`.

        Raises:
            ServableError: The request is not accepted; at the first step.
        """
        servable = self._for(request)
        call, inbox = servable.open(request)
        try:
            while True:
                response = await inbox.next()
                yield response
                if response.final:
                    return
        finally:
            servable.cancel(call)

    async def pour(self, request: InferRequest, write: Write, room: Room) -> None:
        """Gives the responses of any servable to `write` where they come about; returns after the last one.

        Cancelling it cancels the request. What goes wrong after the request was accepted is a response with `error`.

        Args:
            request: What is asked.
            write: Takes a response, and never waits.
            room: What it fills; nothing is written while this is full.

        Raises:
            ServableError: The request is not accepted; nothing was written.
            Exception: What `write` raised.
        """
        sink = Poured(write, room, self.limits.max_unread_responses)
        servable = self._for(request)
        call = servable.submit(request, sink)
        try:
            await sink.run()
        finally:
            servable.cancel(call)

    def find(self, name: str, version: int | None = None) -> Servable:
        """Returns the servable that answers now.

        Raises:
            ServableError: There is none; "not_found", or "unavailable" for a named version that is not ready.
        """
        if version is None:
            servable = self._newest.get(name)
            if servable is not None and servable.state == "READY":
                return servable
        slots = self._slots.get(name)
        if slots is None:
            raise ServableError("not_found", f"Request for unknown model: '{name}' is not found")
        if version is None:
            ready = [slot.servable for slot in slots.values() if slot.servable and slot.servable.state == "READY"]
            if ready:
                return max(ready, key=lambda servable: servable.version)
            down = next((slot.servable.refusal for slot in slots.values() if slot.servable is not None), None)
            if down is not None:
                raise ServableError(down.code, down.message, retry_after_s=down.retry_after_s)
            raise ServableError("not_found", f"Request for unknown model: '{name}' has no available versions")
        slot = slots.get(version)
        if slot is None:
            raise ServableError("not_found", f"Request for unknown model: '{name}' version {version} is not found")
        if slot.servable is None or slot.servable.state != "READY":
            raise ServableError(
                "unavailable", f"Request for unknown model: '{name}' version {version} is not at ready state"
            )
        return slot.servable

    def names(self) -> list[str]:
        """The names of all servables that are or were loaded, sorted."""
        return sorted(self._slots)

    def versions(self, name: str) -> list[int]:
        """The versions of a servable that answer now, sorted."""
        slots = self._slots.get(name, {})
        return sorted(
            version for version, slot in slots.items() if slot.servable is not None and slot.servable.state == "READY"
        )

    def index(self) -> list[IndexEntry]:
        """Every version that is or was loaded, with its state."""
        entries = []
        for name in sorted(self._slots):
            for version, slot in sorted(self._slots[name].items()):
                servable = slot.servable
                if servable is not None and servable.state in ("READY", "UNAVAILABLE"):
                    entries.append(IndexEntry(name, version, servable.state, servable.reason))
                else:
                    entries.append(IndexEntry(name, version, slot.state, slot.reason))
        return entries

    def statistics(self, name: str | None = None, version: int | None = None) -> list[ServableStatistics]:
        """The counters of all servables that answer, of one, or of one version.

        Raises:
            ServableError: There is no such servable.
        """
        if name is not None and not self.versions(name):
            raise ServableError("invalid_argument", f"requested model '{name}' is not available")
        if name is not None and version is not None and version not in self.versions(name):
            raise ServableError("invalid_argument", f"requested model version is not available for model '{name}'")
        return [
            self.find(known, number).statistics
            for known in ([name] if name is not None else self.names())
            for number in self.versions(known)
            if version is None or number == version
        ]

    async def add(self, config: ServableConfig, folder: ModelFolder) -> Servable:
        """Loads a version and begins to answer with it; one of the same number goes when this one is ready.

        Raises:
            ServableError: It cannot be loaded. A version of the same number goes on answering.
        """
        if self._is_closed:
            raise ServableError("unavailable", "The server is shutting down.")
        lock = self._load_locks.setdefault(config.name, asyncio.Lock())
        async with lock:
            slots = self._slots.setdefault(config.name, {})
            slot = slots.setdefault(folder.version, _Slot(None, "LOADING"))
            slot.state, slot.reason = "LOADING", ""
            try:
                servable = await self._load(config, folder)
            except BaseException as error:
                slot.reason = "Loading was interrupted."
                if isinstance(error, ServableError):
                    slot.reason = f"{WORDS[error.code]}: {error.message}"
                slot.has_failed = slot.servable is None
                slot.state = "UNAVAILABLE" if slot.has_failed else "READY"
                raise
            previous, slot.servable = slot.servable, servable
            slot.state, slot.reason, slot.has_failed = "READY", "", False
            self._choose(config.name)
            if previous is not None:
                self._leave(previous, None)
            return servable

    async def remove(self, name: str, version: int | None = None, *, reason: str = "unloaded") -> None:
        """Stops answering with a servable, or one version; what was accepted is finished in the background.

        A name that is not known is no error.
        """
        if name not in self._slots:
            return
        lock = self._load_locks.setdefault(name, asyncio.Lock())
        async with lock:
            for number, slot in self._slots.get(name, {}).items():
                if version is not None and number != version:
                    continue
                servable, slot.servable = slot.servable, None
                if servable is None and slot.has_failed:
                    continue  # the index goes on telling why
                slot.state, slot.reason = "UNAVAILABLE", reason
                if servable is not None:
                    slot.state = "UNLOADING"
                    self._leave(servable, slot)
            self._choose(name)

    async def settled(self) -> None:
        """Waits until every version that was removed is gone."""
        while self._drains:
            await asyncio.wait(set(self._drains))

    async def close(self) -> None:
        """Removes everything; what is open may finish within the limit."""
        self._is_closed = True
        for name in self.names():
            await self.remove(name)
        await self.settled()

    def _for(self, request: InferRequest) -> Servable:
        sequence = request.sequence
        if sequence is not None and not sequence.start:
            # A sequence stays with the version it began on, also while that one is leaving.
            for servable in self._leaving.get(request.model, ()):
                if servable.state == "UNLOADING" and servable.scheduler.owns(request):
                    return servable
        return self.find(request.model, request.version)

    async def _load(self, config: ServableConfig, folder: ModelFolder) -> Servable:
        if config.ensemble:
            return load_ensemble(config, folder.version, self, self._shared)
        backend = self._backends.get(config.backend)
        if backend is None:
            raise ServableError(
                "invalid_argument",
                f"unable to find backend '{config.backend}' for model '{config.name}'; "
                f"there are: {', '.join(sorted(self._backends)) or 'none'}",
            )
        return await load_servable(config, folder, backend, self._shared)

    def _choose(self, name: str) -> None:
        served = [slot.servable for slot in self._slots.get(name, {}).values() if slot.servable is not None]
        if served:
            self._newest[name] = max(served, key=lambda servable: servable.version)
        else:
            self._newest.pop(name, None)

    def _leave(self, servable: Servable, slot: _Slot | None) -> None:
        servable.state = "UNLOADING"
        self._leaving.setdefault(servable.name, []).append(servable)
        task = asyncio.get_running_loop().create_task(self._finish(servable, slot))
        self._drains.add(task)
        task.add_done_callback(self._drains.discard)

    async def _finish(self, servable: Servable, slot: _Slot | None) -> None:
        await servable.drain()
        await servable.close()
        leaving = self._leaving[servable.name]
        leaving.remove(servable)
        if not leaving:
            del self._leaving[servable.name]
        if slot is not None and slot.state == "UNLOADING" and slot.servable is None:
            slot.state = "UNAVAILABLE"
