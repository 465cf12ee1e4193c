"""`Promises`: which waiting jobs have a plan, and whose planned cells are held in the pass that is going on.

Owns a plan from the moment it is remembered until its job starts or it is broken, and the rule for who may break it.
Knows nothing of turns or searches: `Scheduler` asks it, and nothing else does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from millpond.jobs.scheduling.backfill import Holds
from millpond.jobs.scheduling.cells import Grain, is_overlapping
from millpond.jobs.scheduling.preempt import is_plan_open
from millpond.jobs.scheduling.state import ClusterState, FuturePlan, JobState
from millpond.jobs.scheduling.turn import Refusals, SchedulerLimits
from millpond.jobs.scheduling.types import JobStatus


class Promises:
    """The plans of waiting jobs.

    Args:
        state: The cluster.
        limits: For how many jobs cells are kept.
        refusals: Forgotten when a plan is broken: what it kept is there for others.
    """

    def __init__(self, state: ClusterState, limits: SchedulerLimits, refusals: Refusals) -> None:
        self.holds = Holds(state)
        self.held: set[str] = set()  # whose cells are out of the pool now
        self.is_broken = False  # since the last pass began: who was refused before may fit now
        self._state = state
        self._limits = limits
        self._refusals = refusals
        self._planned: dict[str, bool] = {}  # whether anything is held for the job
        self._kept: dict[str, bool] = {}  # those of them with cells; whether the job is aggregated
        self._latest_s: float | None = None
        self._shape_due_s: float | None = None
        self._tree_version = -1  # at which the quota that is kept was last added up

    def jobs(self) -> list[JobState]:
        """Who has a plan, the oldest plan first."""
        return [self._state.jobs[name] for name in self._planned]

    def plans(self) -> list[FuturePlan]:
        """All plans, the oldest first."""
        return [job.plan for job in self.jobs() if job.plan is not None]

    def latest_s(self) -> float | None:
        """When the last of the plans begins whose time is known; None when there is none."""
        if self._latest_s is None:
            starts = (plan.start_s for plan in self.plans() if plan.start_s < float("inf"))
            self._latest_s = max(starts, default=float("-inf"))
        return None if self._latest_s == float("-inf") else self._latest_s

    def is_shape_due(self, now_s: float) -> bool:
        """Whether it is time for a job that waits for a better shape than it could have."""
        if self._shape_due_s is None:
            starts = (plan.start_s for plan in self.plans() if plan.kind == "shape")
            self._shape_due_s = min(starts, default=float("inf"))
        return self._shape_due_s <= now_s

    def remember(self, job: JobState, plan: FuturePlan) -> None:
        """Makes a promise."""
        job.plan = plan
        self._planned[job.request.job_id] = bool(plan.grains or plan.charge)
        self._latest_s = self._shape_due_s = None
        self._kept.pop(job.request.job_id, None)
        if plan.grains and plan.kind != "quota":
            self._kept[job.request.job_id] = job.request.aggregation is not None
        if plan.kind == "eviction":
            self._tree_version = -1  # found as if promises of lower priority were not there

    def keep(self, job: JobState) -> None:
        """The job starts: nothing is owed any more."""
        self._planned.pop(job.request.job_id, None)
        self._kept.pop(job.request.job_id, None)
        self._latest_s = self._shape_due_s = None

    def forget(self, job: JobState) -> None:
        """Breaks a promise."""
        job.plan = None
        self.keep(job)
        self._refusals.clear()
        self.is_broken = True

    def drop_stale(self) -> None:
        """Breaks the promises that can no longer be kept, as a pass begins."""
        self.is_broken = False
        for job in self.jobs():
            if job.status is not JobStatus.PENDING or job.plan is None:
                self.keep(job)
            elif job.plan.grains and not is_plan_open(self._state, job.plan):
                self.forget(job)
        if self._tree_version != self._state.quota.tree_version:
            self._drop_surplus()
            self._tree_version = self._state.quota.tree_version

    def _drop_surplus(self) -> None:
        """Breaks what quotas do not allow together any more: nodes were lost, say. They would wait for each other."""
        planned = self.jobs()
        charges = [(job.request.tenant, job.plan.charge) for job in planned if job.plan is not None]
        for job, fits in zip(planned, self._state.quota.fitting(charges), strict=True):
            if not fits:
                self.forget(job)

    def may_keep(self, job: JobState) -> bool:
        """Whether cells may be kept for one more job."""
        if len(self._kept) >= self._limits.plan_depth:
            return False
        return job.request.aggregation is None or sum(self._kept.values()) < self._limits.shape_depth

    def hold_all(self) -> None:
        """Takes what is free of all plans out of the pool, the oldest plan first: a pass begins."""
        for name in [name for name, holds in self._planned.items() if holds]:
            self.hold(self._state.jobs[name])

    def hold(self, job: JobState) -> None:
        """Takes what is free of a job's plan out of the pool."""
        if job.plan is not None and (job.plan.grains or job.plan.charge):
            self.holds.add(job)
            self.held.add(job.request.job_id)

    def lift(self, job: JobState) -> None:
        """Gives back what is held for a job; nothing may be."""
        if job.request.job_id in self.held:
            self.held.remove(job.request.job_id)
            self.holds.lift(job.request.job_id)

    def renew(self, job: JobState) -> None:
        """Had its turn, and nothing changed."""
        if job.request.job_id in self.held:
            self.holds.renew(job.request.job_id)

    def lift_all(self) -> None:
        """Gives everything back: the end of a pass."""
        self.holds.lift_all()
        self.held.clear()

    @contextmanager
    def aside(self, names: Sequence[str]) -> Iterator[None]:
        """What is held for these jobs is free for a while."""
        for name in names:
            self.holds.lift(name)
        yield
        for name in names:
            self.holds.add(self._state.jobs[name])

    def giving_way(self, job: JobState) -> list[str]:
        """Whose promises a job may break."""
        jobs, priority = self._state.jobs, job.request.priority
        lower = [name for name in self.held if jobs[name].request.priority < priority]
        return sorted([name for name in lower if self._gives_way(jobs[name], job)])

    def may_overtake(self, job: JobState, until_s: float) -> bool:
        """Whether a job that is gone by `until_s` may use anybody's planned cells."""
        return bool(self.held) and bool(self.holds.later_than(until_s) or self.giving_way(job))

    def break_over(self, grains: Sequence[Grain], *, ends_s: float | None = None, among: Iterable[str] = ()) -> None:
        """Breaks promises whose cells are taken.

        Args:
            grains: What is taken.
            ends_s: Given back by then; plans that begin no earlier stand.
            among: Only promises to these jobs; empty: all.
        """
        for name in list(among or self._planned):
            job = self._state.jobs[name]
            is_in_time = ends_s is None or (job.plan is not None and job.plan.start_s < ends_s)
            if job.plan is not None and is_in_time and is_overlapping(job.plan.grains, grains):
                self.lift(job)
                self.forget(job)

    @staticmethod
    def _gives_way(planned: JobState, job: JobState) -> bool:
        """Whether a promise of lower priority may be broken. What was emptied gives way in its tenant alone."""
        is_claim = planned.plan is not None and planned.plan.kind == "eviction"
        return not is_claim or planned.request.tenant == job.request.tenant
