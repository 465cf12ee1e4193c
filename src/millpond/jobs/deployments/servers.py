"""The replicas of a deployment as the keeper knows them: what their jobs say, whether they answer, what they measure.

Owns probing and reading of metrics, a task a replica. Decides nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import aiohttp

from millpond.api.deployment import ProbeSpec, ServerPhase, TemplateSpec
from millpond.api.job import JobPhase, ReplicaPhase
from millpond.jobs.deployments.balance import Backend
from millpond.jobs.deployments.plan import Server
from millpond.jobs.deployments.wish import REVISION_LABEL, VERSION_LABEL
from millpond.jobs.state import JobState
from millpond.jobs.status import job_status

METRICS_EVERY_S = 1.0
_MAX_PAGE = 4 << 20
_LABELS = r'(?:\{(?:[^"}]|"(?:[^"\\]|\\.)*")*\})?'
_SAMPLE = re.compile(rf"([A-Za-z_:][\w:]*){_LABELS}\s+([-+.\deE]+|[+-]?Inf)(?:\s+-?\d+)?")
GAUGES = {"queue": "millpond_scheduler_waiting_sequences", "kv": "millpond_cache_usage_ratio"}


@dataclass(slots=True, eq=False)
class Replica:
    """One replica.

    Attributes:
        readings: Its gauges, by target; None: it does not say.
        misses: Probes that failed in a row.
    """

    uid: str
    name: str
    version: str
    revision: int
    template: TemplateSpec
    backend: Backend
    created_s: float
    since_s: float
    phase: ServerPhase = ServerPhase.QUEUED
    node: str = ""
    message: str = ""
    ready_s: float | None = None
    started_s: float | None = None
    readings: dict[str, float] | None = None
    misses: int = 0
    task: asyncio.Task[None] | None = None
    wanted: frozenset[str] = field(default_factory=frozenset)

    @property
    def view(self) -> Server:
        """As the plan sees it."""
        return Server(self.uid, self.revision, self.phase, self.created_s, self.since_s, self.backend.in_flight)

    def enter(self, phase: ServerPhase, now_s: float, message: str = "") -> None:
        """Comes into another phase."""
        if phase is not self.phase:
            self.phase, self.since_s = phase, now_s
        self.message = message

    def take_job(self, state: JobState, explanation: dict[str, object], now_s: float) -> bool:
        """Takes over what the job says; returns whether the replica ended just now."""
        if self.phase is ServerPhase.ENDED:
            return False
        run = state.replicas[0]
        if state.is_final or state.deleted_s is not None or run.has_ended:
            code = "" if run.exit_code is None else f" with code {run.exit_code}"
            because = f" ({run.message})" if run.message else ""
            self.enter(ServerPhase.ENDED, now_s, f"{self.name} ended{code}{because}.")
            return True
        self.node = run.node
        if run.phase is ReplicaPhase.RUNNING and state.phase is not JobPhase.QUEUING:
            self.backend.port = run.port
            if self.phase is ServerPhase.QUEUED:
                self.started_s = now_s
                self.enter(ServerPhase.STARTING, now_s)
        elif run.phase is ReplicaPhase.PENDING and self.phase is not ServerPhase.DRAINING:
            self.backend.is_open = False  # not started yet, or back in the queue because others go first
            self.enter(ServerPhase.QUEUED, now_s, job_status(state, explanation).waiting)
        return False


def adopt(state: JobState, template: TemplateSpec, host: str, now_s: float) -> Replica:
    """A replica whose job is there already."""
    labels, name = state.spec.labels, state.spec.name
    version = labels[VERSION_LABEL]
    backend = Backend(state.uid, version, host, 0, name)
    return Replica(
        state.uid, name, version, int(labels[REVISION_LABEL]), template, backend, state.created_s, now_s
    )


class Prober:
    """Asks replicas, again and again, whether they are ready and what they measure.

    Args:
        changed: Called when a replica came into another phase.
        clock: Seconds since the epoch.
    """

    def __init__(self, changed: Callable[[Replica], None], clock: Callable[[], float]) -> None:
        self._changed = changed
        self._clock = clock
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Opens connections. Each probe has one of its own, so that it tests what a new client would meet."""
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        self._session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())

    async def close(self) -> None:
        """Closes them."""
        if self._session is not None:
            await self._session.close()

    def watch(self, replica: Replica) -> None:
        """Begins with a replica that was started."""
        replica.task = asyncio.create_task(self._watch(replica), name=f"probe {replica.name}")

    async def _watch(self, replica: Replica) -> None:
        probe = replica.template.ready
        metrics_s = 0.0
        loop = asyncio.get_running_loop()
        while replica.phase is not ServerPhase.ENDED:
            is_ready = await self._is_ready(replica, probe)
            self._take(replica, probe, is_ready=is_ready)
            if is_ready and replica.wanted and loop.time() >= metrics_s:
                replica.readings = await self._read(replica)
                metrics_s = loop.time() + METRICS_EVERY_S
            early = replica.phase is ServerPhase.STARTING
            await asyncio.sleep(min(probe.interval_s, 0.1) if early else probe.interval_s)

    def _take(self, replica: Replica, probe: ProbeSpec, *, is_ready: bool) -> None:
        now_s = self._clock()
        replica.misses = 0 if is_ready else replica.misses + 1
        if is_ready and replica.phase in (ServerPhase.STARTING, ServerPhase.UNREADY):
            replica.ready_s = now_s
            replica.enter(ServerPhase.READY, now_s)
            self._changed(replica)
        elif not is_ready and replica.phase is ServerPhase.READY and replica.misses >= probe.failures:
            replica.readings = None
            replica.enter(ServerPhase.UNREADY, now_s, f"{replica.name} does not answer its probe.")
            self._changed(replica)

    async def _is_ready(self, replica: Replica, probe: ProbeSpec) -> bool:
        backend = replica.backend
        try:
            async with asyncio.timeout(probe.timeout_s):
                if not probe.path:
                    _, writer = await asyncio.open_connection(backend.host, backend.port)
                    writer.close()
                    with contextlib.suppress(OSError):
                        await writer.wait_closed()
                    return True
                assert self._session is not None
                url = f"http://{backend.host}:{backend.port}{probe.path}"
                async with self._session.get(url, allow_redirects=False) as answer:
                    return answer.status < 400
        except (OSError, TimeoutError, aiohttp.ClientError):
            return False

    async def _read(self, replica: Replica) -> dict[str, float] | None:
        backend = replica.backend
        url = f"http://{backend.host}:{backend.port}{replica.template.metrics_path}"
        assert self._session is not None
        try:
            async with asyncio.timeout(replica.template.ready.timeout_s), self._session.get(url) as answer:
                if answer.status != 200:
                    return None
                page = bytearray()
                async for piece in answer.content.iter_any():
                    page += piece
                    if len(page) > _MAX_PAGE:
                        return None
        except (OSError, TimeoutError, aiohttp.ClientError):
            return None
        return read_gauges(page.decode("utf-8", "replace"), replica.wanted)


def read_gauges(page: str, targets: Collection[str]) -> dict[str, float]:
    """The gauges of a Prometheus page that targets stand for; samples with different labels are summed.

    What is no finite number is left out: nobody could scale by it.
    """
    names = {GAUGES.get(target, target): target for target in targets}
    found: dict[str, float] = {}
    for line in page.splitlines():
        sample = _SAMPLE.match(line)
        if sample is None or sample[1] not in names:
            continue
        with contextlib.suppress(ValueError):  # no number
            value = float(sample[2])
            if math.isfinite(value):
                target = names[sample[1]]
                found[target] = found.get(target, 0.0) + value
    return found
