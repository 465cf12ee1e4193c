"""The operator: watches jobs, pods and machines, lets the controller decide, writes that down, and carries it out.

One turn: take in what changed; one cycle of the controller; write every changed job's Reservation; only then start and
stop pods; then statuses and events. So the operator may die at any line, and the next one reads the Reservations and
goes on. Trouble with the API server never loses a step: what is not written yet is not carried out, and is tried again.
Called by the package's entry, as the one leader.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

from millpond.jobs.clusters.kubernetes import gangs
from millpond.jobs.clusters.kubernetes.client import ApiError, KubernetesApi
from millpond.jobs.clusters.kubernetes.cluster import KubernetesCluster
from millpond.jobs.clusters.kubernetes.inferences import Inferences
from millpond.jobs.clusters.kubernetes.intake import Intake
from millpond.jobs.clusters.kubernetes.machines import Machines
from millpond.jobs.clusters.kubernetes.pods import PodSettings
from millpond.jobs.clusters.kubernetes.store import ObjectStore
from millpond.jobs.clusters.kubernetes.writer import Writer
from millpond.jobs.collecting import Collecting
from millpond.jobs.controller import Controller, ControllerParts
from millpond.jobs.scheduling.log import DecisionLog
from millpond.jobs.scheduling.scheduler import Scheduler
from millpond.jobs.scheduling.types import TenantSpec

_RETRY_S = 1.0
_LONGEST_SLEEP_S = 30.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OperatorSettings:
    """How an operator runs.

    Attributes:
        gang_scheduler: The cluster's own gang scheduler; empty: pods are placed by ours.
        namespace: Only jobs of this namespace; empty: all.
        node_selector: Labels that a node must have to be used.
        reserved_cpus, reserved_bytes: Kept on every node for daemons.
        node_lost_s: So long a node may be silent before its pods count as lost.
    """

    pods: PodSettings = field(default_factory=PodSettings)
    gang_scheduler: str = ""
    namespace: str = ""
    node_selector: tuple[tuple[str, str], ...] = ()
    reserved_cpus: float = 0.0
    reserved_bytes: int = 0
    node_lost_s: float = 300.0
    tenants: tuple[TenantSpec, ...] = ()


class Operator:
    """One cluster's operator.

    Args:
        api: The API server.
        settings: How it runs.
        clock: Seconds since the epoch.
        identity: Who writes; see `Leader`.
        log: Where the scheduler's decisions go.
    """

    def __init__(
        self,
        api: KubernetesApi,
        settings: OperatorSettings,
        clock: Callable[[], float],
        *,
        identity: str = "",
        log: DecisionLog | None = None,
    ) -> None:
        gang = gangs.GANG_SCHEDULERS[settings.gang_scheduler] if settings.gang_scheduler else None
        self.store = ObjectStore()
        self.cluster = KubernetesCluster(api, settings.pods, clock, gang)
        scheduler = Scheduler(log=log) if gang is None else gangs.HandOverScheduler()
        parts = ControllerParts(
            self.store, self.cluster, scheduler, clock, lambda: uuid.uuid4().hex, settings.tenants
        )  # fmt: skip
        self.controller = Controller(parts)
        self.cluster.states = self.controller.jobs
        self.intake = Intake(api, settings, self.store, self.cluster, clock)
        self.machines = Machines(api, settings, self.cluster, clock)
        self.writer = Writer(api, self.store, self.cluster, self.intake, identity)
        self.inferences = Inferences(api, clock, settings.namespace, settings.pods.device_resource)
        self.turns = 0
        self.collecting: Collecting | None = None  # told when a turn is over
        self._clock = clock

    async def run(self) -> None:
        """Runs until it is cancelled.

        Raises:
            LeadershipLostError: Another operator writes; this one must stop.
        """
        reflectors = (self.cluster.pods, *self.machines.reflectors, *self.intake.reflectors,
                      *self.inferences.reflectors)  # fmt: skip
        watching = [asyncio.create_task(job.run()) for job in reflectors]
        watching.append(asyncio.create_task(self.inferences.run()))
        try:
            for reflector in (self.cluster.pods, *self.machines.reflectors, *self.intake.reflectors):
                await reflector.is_synced.wait()
            await self._recover()
            while True:
                await self._turn()
        finally:
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)

    async def _recover(self) -> None:
        """Takes up what an earlier operator has left."""
        self.machines.start()
        self.intake.recover()
        self.controller.recover()
        _log.info("%d jobs, %d machines", len(self.controller.jobs), len(self.cluster.machines))

    async def _turn(self) -> None:
        changed = self.cluster.changed
        changed.clear()
        for event in self.machines.take_events(self.controller.jobs):
            self.controller.tell(event)
        await self.intake.take(self.controller.jobs)
        self.controller.cycle()
        is_done = await self.writer.write(self.controller.jobs)
        await self.cluster.carry_out(self.writer.is_saved)
        is_done = await self.writer.show(self.controller.jobs) and is_done and not self.cluster.is_busy
        self.turns += 1
        if self.collecting is not None:
            self.collecting.rest(self._clock(), is_idle=is_done)
        await self._sleep(is_done)

    async def _sleep(self, is_done: bool) -> None:
        times = [self.controller.next_time(), self.machines.next_time()]
        now_s = self._clock()
        waits = [at_s - now_s for at_s in times if at_s is not None]
        wait_s = min([_LONGEST_SLEEP_S if is_done else _RETRY_S, *waits])
        # NOTE: not `wait_for`, which before Python 3.12 can swallow the cancellation that is to end us.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.01, wait_s)):
                await self.cluster.changed.wait()


async def check_access(api: KubernetesApi, settings: OperatorSettings) -> None:
    """Fails early where the kinds are not installed.

    Raises:
        ApiError: What is missing.
    """
    from millpond.jobs.clusters.kubernetes.kinds import RESERVATIONS

    try:
        await api.list(RESERVATIONS, settings.namespace)
    except ApiError as error:
        if error.status == 404:
            raise ApiError(404, "NotFound", "the kinds of jobs.millpond.io are missing; apply deploy/crds.") from None
        raise
