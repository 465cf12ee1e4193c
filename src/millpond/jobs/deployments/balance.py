"""Which replica gets a request, and who waits for one.

Versions share requests by weight (smooth weighted round robin, so that any stretch of requests is split as asked);
within a version the least busy replica is taken. When none has room, requests wait in order, in a queue that is bounded
and for a time that is bounded. For one event loop; knows nothing about HTTP. Owned by the keeper, used by the proxy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from millpond.api.deployment import GatewaySpec
from millpond.base.errors import MillpondError


class NoReplicaError(MillpondError):
    """No replica had room: the queue is full, or the wait was too long."""

    code = "no_replica"


@dataclass(slots=True, eq=False)
class Backend:
    """A replica that can get requests. `is_open`: it is ready and not on its way out."""

    uid: str
    version: str
    host: str
    port: int
    name: str = ""
    is_open: bool = False
    in_flight: int = 0
    requests: int = 0


@dataclass(slots=True, eq=False)
class _Waiter:
    version: str
    is_pinned: bool
    avoided: frozenset[str]
    future: asyncio.Future[Backend]


@dataclass(slots=True)
class Balancer:
    """Owns the replicas of a deployment as places for requests."""

    limits: GatewaySpec
    backends: dict[str, Backend] = field(default_factory=dict)
    weights: dict[str, int] = field(default_factory=dict)
    is_closed: bool = False
    _credits: dict[str, int] = field(default_factory=dict)
    _waiters: list[_Waiter] = field(default_factory=list)

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a replica."""
        return len(self._waiters)

    def num_waiting_for(self, version: str) -> int:
        """Requests that wait for a replica of this version, with those that any version may answer."""
        return sum(waiter.version in ("", version) for waiter in self._waiters)

    def add(self, backend: Backend) -> None:
        """Knows a replica from now on."""
        self.backends[backend.uid] = backend

    def remove(self, uid: str) -> None:
        """Forgets a replica; requests that it has go on."""
        found = self.backends.pop(uid, None)
        if found is not None:
            found.is_open = False

    def set_open(self, backend: Backend, is_open: bool) -> None:
        """Gives a replica requests, or no new ones."""
        if backend.is_open != is_open:
            backend.is_open = is_open
            self.pump()

    def set_weights(self, weights: Mapping[str, int]) -> None:
        """How versions share requests."""
        if self.weights != dict(weights):
            self.weights = dict(weights)
            self._credits = {}
            self.pump()

    async def take(self, version: str = "", avoided: frozenset[str] = frozenset()) -> Backend:
        """Waits for a replica and counts a request to it; `give_back` must follow.

        Args:
            version: Only this one; empty: by weight.
            avoided: Replicas that are taken only when there is no other.

        Raises:
            NoReplicaError: There was none in time, or too many wait already.
        """
        is_pinned = bool(version)
        chosen = version or self._choose()
        backend = self._pick(chosen, avoided) if chosen else None
        if backend is not None and not self._is_overtaking(chosen):
            self._count(backend)
            return backend
        if self.is_closed or len(self._waiters) >= self.limits.max_queue:
            raise NoReplicaError(
                f"{len(self._waiters)} requests wait for a replica already.", fix="Try again later."
            )
        future: asyncio.Future[Backend] = asyncio.get_running_loop().create_future()
        waiter = _Waiter(chosen, is_pinned, avoided, future)
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(self.limits.queue_timeout_s):
                return await future
        except TimeoutError:
            self._lost(future)
            raise NoReplicaError(
                f"No replica had room within {self.limits.queue_timeout_s:g} s.", fix="Try again later."
            ) from None
        except asyncio.CancelledError:
            self._lost(future)
            raise
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def give_back(self, backend: Backend) -> None:
        """A request to this replica is over."""
        backend.in_flight -= 1
        assert backend.in_flight >= 0
        self.pump()

    def refuse(self) -> None:
        """Lets nobody wait any more."""
        self.is_closed = True
        for waiter in self._waiters:
            if not waiter.future.done():
                waiter.future.set_exception(NoReplicaError("The deployment is being deleted."))

    def pump(self) -> None:
        """Gives replicas with room to those who wait, in order."""
        if not self._waiters:
            return
        left = []
        up = {backend.version for backend in self.backends.values() if backend.is_open}
        full: set[str] = set()  # whose replicas have no room: nobody behind needs to look at them again
        for waiter in self._waiters:
            if waiter.future.done():
                continue
            if not waiter.is_pinned and waiter.version not in up:
                waiter.version = self._choose() if up else ""
            backend = None
            if waiter.version in up and waiter.version not in full:
                backend = self._pick(waiter.version, waiter.avoided)
            if backend is None:
                full.add(waiter.version)
                left.append(waiter)
                continue
            self._count(backend)
            waiter.future.set_result(backend)
        self._waiters = left

    def _lost(self, future: asyncio.Future[Backend]) -> None:
        """Nobody came for what was given: it goes back."""
        if future.done() and not future.cancelled() and future.exception() is None:
            self.give_back(future.result())

    @staticmethod
    def _count(backend: Backend) -> None:
        backend.in_flight += 1
        backend.requests += 1

    def _is_overtaking(self, version: str) -> bool:
        return any(waiter.version == version and not waiter.avoided for waiter in self._waiters)

    def _is_up(self, version: str) -> bool:
        return any(backend.is_open for backend in self.backends.values() if backend.version == version)

    def _choose(self) -> str:
        """The version whose turn it is, among those with a ready replica; empty when there is none."""
        weights = {name: weight for name, weight in self.weights.items() if weight and self._is_up(name)}
        if not weights:
            return ""
        if len(weights) == 1:
            return next(iter(weights))
        for name, weight in weights.items():
            self._credits[name] = self._credits.get(name, 0) + weight
        chosen = max(weights, key=lambda name: self._credits[name])
        self._credits[chosen] -= sum(weights.values())
        return chosen

    def _pick(self, version: str, avoided: frozenset[str]) -> Backend | None:
        """The least busy replica with room; among equals the one that has had the fewest requests."""
        limit = self.limits.concurrency
        found = [
            backend
            for backend in self.backends.values()
            if backend.is_open and backend.version == version and (not limit or backend.in_flight < limit)
        ]
        if not found:
            return None
        return min(found, key=lambda backend: (backend.uid in avoided, backend.in_flight, backend.requests))
