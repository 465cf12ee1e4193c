"""`KubernetesCluster`: the controller's seam to pods.

The controller's calls only note what is to be done; `carry_out` does it, after the operator has written down the states
that led to it. Owns which runs are watched, what is still to do, and what was found out. Decides nothing about jobs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from millpond.jobs.clusters.base import Run, RunId, RunReport
from millpond.jobs.clusters.kubernetes import gangs, pods
from millpond.jobs.clusters.kubernetes.client import ApiError, KubernetesApi
from millpond.jobs.clusters.kubernetes.documents import JobObject
from millpond.jobs.clusters.kubernetes.kinds import (
    CONFIG_MAPS,
    PODS,
    ROLE_BINDINGS,
    ROLES,
    SERVICE_ACCOUNTS,
    SERVICES,
    Object,
    ResourceKind,
)
from millpond.jobs.clusters.kubernetes.reflector import Reflector, key_of
from millpond.jobs.clusters.kubernetes.reports import KILLED, REFUSED, read_pod_news, read_time
from millpond.jobs.scheduling.types import NodeSpec
from millpond.jobs.state import CODE_SYNC, JobState

_AT_ONCE = 16
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Stop:
    id: RunId
    force: bool


@dataclass(frozen=True, slots=True)
class _Remove:
    uid: str


class KubernetesCluster:
    """Pods of one API server.

    Args:
        api: The API server.
        settings: How pods are made.
        clock: Seconds since the epoch.
        gang: The scheduler that places pods in our stead; None when we do.
    """

    def __init__(
        self,
        api: KubernetesApi,
        settings: pods.PodSettings,
        clock: Callable[[], float],
        gang: gangs.GangScheduler | None = None,
    ) -> None:
        self.jobs: dict[str, JobObject] = {}
        self.states: Mapping[str, JobState] = {}
        self.machines: dict[str, NodeSpec] = {}
        self.lost_nodes: set[str] = set()
        self.pods = Reflector(api, PODS, self._pod_changed, selector=pods.UID)
        self.changed = asyncio.Event()
        self._api = api
        self.settings = settings
        self._clock = clock
        self._gang = gang
        self._watched: dict[RunId, bool] = {}  # whether it was reported as running
        self._todo: list[Run | _Stop | _Remove] = []
        self._reports: list[RunReport] = []
        self._doubtful: set[RunId] = set()
        self._maybe_ended: set[tuple[str, str]] = set()
        self._prepared: set[str] = set()
        self._at_once = asyncio.Semaphore(_AT_ONCE)

    # The controller's side -----------------------------------------------------------------------------------

    def nodes(self) -> Sequence[NodeSpec]:
        """The machines that jobs may use."""
        return tuple(self.machines.values())

    def take_ports(self, count: int, taken: Collection[int]) -> list[int]:
        """Every pod has an address of its own, so every replica listens on its role's port."""
        return [0] * count

    def host_of(self, uid: str, role: str, index: int, node: str) -> str:
        """The name of the replica's service."""
        job = self.jobs.get(uid) or JobObject({}, self.states[uid].spec)  # a cron's job has no object yet
        return pods.host_of(job, role, index, self.settings.domain)

    def start(self, run: Run) -> None:
        """Notes a run to start. Code is fetched inside each pod, so that run is over at once."""
        if run.id.role == CODE_SYNC:
            self._reports += [RunReport(run.id, self._clock()), RunReport(run.id, self._clock(), exit_code=0)]
            self.changed.set()
            return
        self._watched.setdefault(run.id, False)
        self._todo.append(run)

    def watch(self, run_id: RunId) -> None:
        """Goes on reporting about a run."""
        if run_id.role == CODE_SYNC:
            self._reports.append(RunReport(run_id, self._clock(), exit_code=0))
            self.changed.set()
            return
        self._watched.setdefault(run_id, True)

    def stop(self, run_id: RunId, *, force: bool) -> None:
        """Notes a run to stop."""
        self._todo.append(_Stop(run_id, force))

    def remove(self, uid: str) -> None:
        """Notes a job whose pods, services and files go."""
        self._todo.append(_Remove(uid))

    def poll(self) -> list[RunReport]:
        """What pods have said since the last call."""
        reports, self._reports = self._reports, []
        for report in reports:
            if report.exit_code is not None:
                self._watched.pop(report.id, None)
        to_start = {task.id for task in self._todo if isinstance(task, Run)}
        for run_id, was_reported in list(self._watched.items()):
            if run_id not in to_start:
                reports += self._look(run_id, was_reported)
        return reports

    def _look(self, run_id: RunId, was_reported: bool) -> list[RunReport]:
        pod = self._pod_of(run_id)
        job = self.jobs.get(run_id.uid)
        if pod is None or job is None:
            self._doubtful.add(run_id)
            return []
        now_s = self._clock()
        if pod["spec"].get("nodeName") in self.lost_nodes:
            return [self._end(run_id, pod, RunReport(run_id, now_s, exit_code=KILLED, reason="Lost"))]
        news = read_pod_news(pod, pods.main_container(pod["spec"], job)["name"])
        found = []
        if news.has_started and not was_reported:
            self._watched[run_id] = True
            found.append(RunReport(run_id, news.started_s or now_s))
        if news.exit_code is not None:
            report = RunReport(run_id, news.ended_s or now_s, exit_code=news.exit_code, reason=news.reason)
            found.append(self._end(run_id, pod, report))
        return found

    def _end(self, run_id: RunId, pod: Object, report: RunReport) -> RunReport:
        self._watched.pop(run_id, None)
        self._maybe_ended.add(key_of(pod))
        return report

    def _pod_of(self, run_id: RunId) -> Object | None:
        job = self.jobs.get(run_id.uid)
        if job is None:
            return None
        pod = self.pods.objects.get((job.namespace, pods.replica_name(job, run_id.role, run_id.index)))
        return pod if pod is not None and _is_attempt(pod, run_id) else None

    def _pod_changed(self, old: Object | None, new: Object | None) -> None:
        if new is not None:
            self._maybe_ended.add(key_of(new))
        self.changed.set()

    # Carrying out --------------------------------------------------------------------------------------------

    @property
    def is_busy(self) -> bool:
        """Whether something is left to carry out."""
        return bool(self._todo or self._doubtful)

    def has_work_for(self, uid: str) -> bool:
        """Whether something is left to carry out for a job."""
        return any((task.uid if isinstance(task, _Remove) else task.id.uid) == uid for task in self._todo)

    async def carry_out(self, is_saved: Callable[[str], bool]) -> None:
        """Does what was noted for jobs whose state is written down; what fails stays noted."""
        todo, self._todo = self._todo, []
        kept: list[Run | _Stop | _Remove] = []
        chains: dict[tuple[str, str, int], list[Run | _Stop]] = {}
        removals: list[_Remove] = []
        for task in todo:
            if not is_saved(task.uid if isinstance(task, _Remove) else task.id.uid):
                kept.append(task)
            elif isinstance(task, _Remove):
                removals.append(task)
            else:
                chains.setdefault((task.id.uid, task.id.role, task.id.index), []).append(task)
        results = await asyncio.gather(*(self._do_all(chain) for chain in chains.values()))
        left: list[Run | _Stop | _Remove] = [task for tasks in results for task in tasks]
        for removal in removals:
            if not await self._safely(self._remove, removal.uid):
                left.append(removal)
        self._todo = [*kept, *left, *self._todo]
        await asyncio.gather(*(self._confirm(run_id) for run_id in list(self._doubtful)))
        await asyncio.gather(*(self._release(key, is_saved) for key in list(self._maybe_ended)))

    async def _do_all(self, chain: list[Run | _Stop]) -> list[Run | _Stop]:
        """Returns what could not be done yet. A start that was never carried out ends with the stop after it."""
        last_stop = next((task for task in reversed(chain) if isinstance(task, _Stop)), None)
        for position, task in enumerate(chain):
            if isinstance(task, Run) and last_stop is not None and last_stop.id == task.id:
                self._reports.append(RunReport(task.id, self._clock(), exit_code=KILLED, reason="Killed"))
                self.changed.set()
                return []
            async with self._at_once:
                if not await self._safely(self._start if isinstance(task, Run) else self._stop, task):
                    return chain[position:]
        return []

    async def _safely(self, doing: Callable[..., Awaitable[bool]], *args: object) -> bool:
        """Whether it is done. Trouble that passes is only logged; the caller tries again."""
        try:
            return await doing(*args)
        except ApiError as error:
            _log.warning("%s", error)
            return False

    async def _start(self, run: Run) -> bool:
        job, state = self.jobs.get(run.id.uid), self.states.get(run.id.uid)
        if job is None or state is None:
            return True  # the job is gone; so is the run
        name = pods.replica_name(job, run.id.role, run.id.index)
        try:
            found = await self._api.get(PODS, job.namespace, name) if self._pod_of(run.id) is None else None
            if found is not None and not _is_attempt(found, run.id):
                return await self._make_room(found, run)
            if found is None and self._pod_of(run.id) is None:
                await self._prepare(job, state, run)
                body = pods.make_pod(job, state, run, self.settings)
                found = await self._api.create(PODS, body if self._gang is None else self._gang.join(body, job))
            if found is not None:
                self.pods.put(found)
        except ApiError as error:
            if error.status == 409:
                return False  # it came into being between our look and our try: look again
            if 400 <= error.status < 500 and error.status != 429:
                reason = f"StartError: {error.said[:500]}"
                self._reports.append(RunReport(run.id, self._clock(), exit_code=REFUSED, reason=reason))
                self.changed.set()
                return True
            raise
        return True

    async def _make_room(self, found: Object, run: Run) -> bool:
        """The name is taken: by an earlier attempt, which goes, or by something that is not ours, which stays."""
        key = key_of(found)
        if pods.UID not in (found["metadata"].get("labels") or {}):
            reason = f"StartError: a pod called {key[1]} is there already"
            self._reports.append(RunReport(run.id, self._clock(), exit_code=REFUSED, reason=reason))
            self.changed.set()
            return True
        await self._api.delete(PODS, *key)
        await self._untrack(found)
        return False

    async def _prepare(self, job: JobObject, state: JobState, run: Run) -> None:
        """What must be there before the pod is."""
        replica = state.replica(run.id.role, run.id.index)
        port = replica.port if replica is not None else 0
        needed: list[tuple[ResourceKind, Object | None]] = [
            (SERVICES, pods.make_service(job, state.uid, run.id, port)),
            (CONFIG_MAPS, pods.make_files(job, state.uid, run)),
        ]
        if state.uid not in self._prepared:
            rights = (SERVICE_ACCOUNTS, ROLES, ROLE_BINDINGS)
            needed += list(zip(rights, pods.make_launcher_rights(job, state.uid), strict=False))
            for kind, group in () if self._gang is None else self._gang.make(job, state.uid):
                await self._regroup(kind, group)
        for kind, body in needed:
            if body is not None:
                await self._create_once(kind, body)
        self._prepared.add(state.uid)

    def resize(self, uid: str, job: JobObject) -> None:
        """From now on the job has other numbers of replicas; what counts them is made anew before its next start."""
        self.jobs[uid] = job
        self._prepared.discard(uid)

    async def _regroup(self, kind: ResourceKind, body: Object) -> None:
        """Makes a gang's object. One of another size is exchanged: its pods are gone, and some kinds cannot change."""
        try:
            await self._api.create(kind, body)
        except ApiError as error:
            if error.status != 409:
                raise
            metadata = body["metadata"]
            found = await self._api.get(kind, metadata["namespace"], metadata["name"])
            if found is None:
                raise  # another start is exchanging it: what it makes must be there before our pod is
            if not body["spec"].items() <= found["spec"].items():
                await self._api.delete(kind, *key_of(found), uid=found["metadata"]["uid"])
                raise

    async def _create_once(self, kind: ResourceKind, body: Object) -> None:
        try:
            await self._api.create(kind, body)
        except ApiError as error:
            if error.status != 409:
                raise
            metadata = body["metadata"]
            changing: Object = {part: body[part] for part in ("data", "rules") if part in body}  # they count replicas
            if changing:
                await self._api.patch(kind, metadata["namespace"], metadata["name"], changing)

    async def _stop(self, task: _Stop) -> bool:
        job = self.jobs.get(task.id.uid)
        pod = self._pod_of(task.id)
        if job is None or pod is None:
            return True  # `poll` finds out what became of it
        metadata = pod["metadata"]
        deleted_s = read_time(metadata.get("deletionTimestamp"))
        if deleted_s is None:
            await self._api.delete(SERVICES, job.namespace, metadata["name"])
            await self._api.delete(PODS, job.namespace, metadata["name"])
        elif task.force and self._clock() > deleted_s and metadata.get("deletionGracePeriodSeconds", 0) > 1:
            # The pod's own time is over. One second, not none: the kubelet still confirms that the processes are gone.
            await self._api.delete(PODS, job.namespace, metadata["name"], grace_s=1)
        return True

    async def _remove(self, uid: str) -> bool:
        job = self.jobs.get(uid)
        if job is None:
            return True
        selector = f"{pods.UID}={uid}"
        kinds = (PODS, SERVICES, CONFIG_MAPS, *((ROLE_BINDINGS, ROLES, SERVICE_ACCOUNTS) if job.spec.framework == "mpi"
                                                 else ()))  # fmt: skip
        for kind in kinds:
            for found in (await self._api.list(kind, job.namespace, selector))[0]:
                await self._api.delete(kind, *key_of(found))
                if kind is PODS:
                    self._maybe_ended.add(key_of(found))
        for kind, body in () if self._gang is None else self._gang.make(job, uid):
            await self._api.delete(kind, job.namespace, body["metadata"]["name"])
        self._prepared.discard(uid)
        return True

    async def _confirm(self, run_id: RunId) -> None:
        """A watched run has no pod in our copy: asks the API server itself before it counts as lost."""
        job = self.jobs.get(run_id.uid)
        if job is not None:
            try:
                found = await self._api.get(PODS, job.namespace, pods.replica_name(job, run_id.role, run_id.index))
            except ApiError as error:
                _log.warning("%s", error)
                return
            if found is not None and _is_attempt(found, run_id):
                self.pods.put(found)
                self._doubtful.discard(run_id)
                return
        self._doubtful.discard(run_id)
        self._reports.append(RunReport(run_id, self._clock(), exit_code=KILLED, reason="Lost"))
        self.changed.set()

    async def _release(self, key: tuple[str, str], is_saved: Callable[[str], bool]) -> None:
        """Lets a pod go of which it is written down how it ended."""
        pod = self.pods.objects.get(key)
        if pod is None or pods.TRACKED not in (pod["metadata"].get("finalizers") or ()):
            self._maybe_ended.discard(key)
            return
        labels = pod["metadata"]["labels"]
        state, job = self.states.get(labels[pods.UID]), self.jobs.get(labels[pods.UID])
        is_lost = pod["spec"].get("nodeName") in self.lost_nodes
        if state is not None and job is not None:
            attempts = {
                (run.role.lower(), str(run.index)): (run.attempt, run.is_live) for run in state.all_runs
            }
            attempt, is_live = attempts.get((labels.get(pods.ROLE, ""), labels.get(pods.INDEX, "")), (0, False))
            if str(attempt) == labels.get(pods.ATTEMPT) and is_live:
                news = read_pod_news(pod, pods.main_container(pod["spec"], job)["name"])
                if news.exit_code is None and not is_lost:
                    self._maybe_ended.discard(key)
                return  # it runs, or its end is not yet written down
            if not is_saved(state.uid):
                return
        try:
            if state is None or is_lost:
                await self._api.delete(PODS, *key, grace_s=0 if is_lost else None)
            await self._untrack(pod)
            self._maybe_ended.discard(key)
        except ApiError as error:
            _log.warning("%s", error)

    async def _untrack(self, pod: Object) -> None:
        finalizers = [name for name in pod["metadata"].get("finalizers") or () if name != pods.TRACKED]
        await self._api.patch(PODS, *key_of(pod), {"metadata": {"finalizers": finalizers}})


def _is_attempt(pod: Object, run_id: RunId) -> bool:
    labels = pod["metadata"].get("labels") or {}
    return labels.get(pods.UID) == run_id.uid and labels.get(pods.ATTEMPT) == str(run_id.attempt)
