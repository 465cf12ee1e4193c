"""`Scheduler`: events in, decisions out.

Owns one pass over the queue: reserve what fits, evict for who may, keep cells for who must wait, and let the rest pass
by where they harm nobody. A pure function of the calls made: no clock, no I/O, no chance. The controller and the
simulator call `apply` and `step`; a `DecisionLog` given to it replays to the same decisions.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace
from typing import TYPE_CHECKING

from millpond.jobs.scheduling.aggregate import better_shape, is_promise_best, plan_shape, whole_request
from millpond.jobs.scheduling.backfill import is_for_one_machine
from millpond.jobs.scheduling.cells import merge_grains
from millpond.jobs.scheduling.events import EventApplier
from millpond.jobs.scheduling.explain import explain_job
from millpond.jobs.scheduling.joint import name_places, place_by_moving, trade_places
from millpond.jobs.scheduling.place import GangPlacement, place_gang
from millpond.jobs.scheduling.preempt import Eviction, find_eviction
from millpond.jobs.scheduling.promises import Promises
from millpond.jobs.scheduling.queue import Bucket, PendingQueue
from millpond.jobs.scheduling.quota import charge_of, demand_of
from millpond.jobs.scheduling.state import ClusterState, FuturePlan, JobState
from millpond.jobs.scheduling.turn import Refusals, SchedulerLimits, Turn
from millpond.jobs.scheduling.types import (
    Decision,
    Event,
    Explanation,
    GangRequest,
    JobStatus,
    Preempt,
    Reclaim,
    Reserve,
    Restored,
    RoleRequest,
)

if TYPE_CHECKING:
    from millpond.jobs.scheduling.log import DecisionLog


class Scheduler:
    """Decides who starts when and where."""

    def __init__(self, limits: SchedulerLimits | None = None, log: DecisionLog | None = None) -> None:
        self.state = ClusterState()
        self.queue = PendingQueue(self.state.quota, self.state.jobs)
        self._limits = limits or SchedulerLimits()
        self.state.cells.is_wired = self._limits.is_wired and not self._limits.is_blind
        self.state.cells.is_blind, self.state.cells.is_random = self._limits.is_blind, self._limits.is_random
        self._log = log
        self._events = EventApplier(self.state, self.queue)
        self._refusals = Refusals()
        self._promises = Promises(self.state, self._limits, self._refusals)
        self._has_unsearched = False  # a pass ended before everybody's victims were looked for
        self._hopeless: dict[tuple[str, int], int] = {}  # tenant and shape -> supply it was hopeless at
        self._seen_version = -1
        self._order: tuple[tuple[int, int, int], dict[str, int]] | None = None
        self._num_steps = 0
        self._next_expiry_s = 0.0

    def apply(self, event: Event, now_s: float) -> None:
        """Takes an event in. Raises `RequestError` for a job that could never start; nothing is kept of it then."""
        now_s = float(now_s)
        self._events.apply(event, now_s)
        if isinstance(event, Restored):
            self._next_expiry_s = 0.0
        self.state.cells.commit()
        if self._log is not None:
            self._log.record_event(event, now_s)

    def step(self, now_s: float) -> list[Decision]:
        """Returns what is to be done now, in order."""
        now_s = float(now_s)
        self._num_steps += 1
        for job in self._overdue(now_s):
            self._events.void(job, "start_timeout")
        decisions: list[Decision] = list(self._events.forced)
        self._events.forced.clear()
        self._pass(now_s, decisions)
        decisions += self.state.release_roles()
        if self._log is not None:
            self._log.record_step(decisions, now_s)
        return decisions

    def explain(self, job_id: str, now_s: float) -> Explanation | None:
        """Why a job is where it is; None for a job the scheduler does not know."""
        job = self.state.jobs.get(job_id)
        return None if job is None else explain_job(self.state, job, now_s, self._position(job_id))

    def check_integrity(self) -> None:
        """Fails when the books do not add up; for tests."""
        self.state.check_integrity()
        assert len(self._promises.holds) == 0, "plans are held only inside a pass"

    def _position(self, job_id: str) -> int | None:
        key = (self.state.cells.version, self._num_steps, len(self.state.jobs))
        if self._order is None or self._order[0] != key:
            self._order = (key, {name: rank for rank, name in enumerate(self.queue.order(), start=1)})
        return self._order[1].get(job_id)

    def _pass(self, now_s: float, decisions: list[Decision]) -> None:
        version, promises = self.state.cells.version, self._promises
        is_new = self._events.fresh or self._has_unsearched or promises.is_broken or promises.is_shape_due(now_s)
        if version == self._seen_version and not is_new:
            return
        if version != self._seen_version:
            self._refusals.clear()
        self._events.fresh.clear()
        self._has_unsearched = False
        turn = Turn(self._limits.eviction_tries, now_s, decisions)
        promises.drop_stale()
        # Plans are kept from the first turn on: a promise is broken by higher priority alone, and what was emptied for
        # a job is not taken by its victims.
        promises.hold_all()
        known = {job.request.job_id for job in promises.jobs()}
        for job, bucket in self.queue.walk():
            self._serve(job, bucket, turn)
        # Whoever stands before it in its bucket may be refused just because of what is kept for it.
        for job in promises.jobs():
            if job.request.job_id not in turn.served:
                self._serve(job, self.queue.bucket_of(job), turn)
        self._serve_deferred(turn)
        self._trade(turn, known)
        name_places(self.state, turn.decisions)
        promises.lift_all()
        self.state.cells.commit()
        self._seen_version = self.state.cells.version

    def _trade(self, turn: Turn, known: Set[str]) -> None:
        """Lets jobs that this pass serves trade places; planned cells are not traded, but those of plans made in it."""
        if self._promises.held & known:
            return
        fresh = [self.state.jobs[name] for name in self._promises.held]
        self._promises.lift_all()
        if trade_places(self.state, [self.state.jobs[name] for name in turn.reserved], self._try):
            for job in fresh:
                self._promises.forget(job)

    def _serve(self, job: JobState, bucket: Bucket, turn: Turn) -> None:
        """Gives one job its turn; before the first of another tenant or priority, those their last one deferred."""
        if turn.deferred and turn.deferred[-1][1].key[:3] != bucket.key[:3]:
            self._serve_deferred(turn)
        if job.request.job_id in turn.served:
            return
        turn.served.add(job.request.job_id)
        if self._is_refused(job) and not self._may_search(bucket, turn):
            return self._pass_by(bucket, turn)
        length = job.length_s
        if self._is_full_for(job, bucket, turn):
            if job.plan is not None:
                return self._promises.renew(job)
            self._refusals.refuse(job.shape, length)
            return self._pass_by(bucket, turn)
        if job.plan is not None:
            self._promises.lift(job)
            is_best = is_promise_best(self.state, job, turn.now_s)
            if is_best and not self._promises.may_overtake(job, turn.now_s + length):
                return self._promises.hold(job)
        lacking = self.state.quota.shortage(job.request.tenant, job.demand)
        whole = whole_request(self.state, job) if lacking is None else None
        if whole is None:
            self._settle(job, bucket, turn, lacking is not None)
        elif (placement := self._place(job, turn, length, whole)) is not None:
            self._reserve(job, placement, turn)
        else:
            self._promises.hold(job)
            turn.deferred.append((job, bucket))

    def _is_refused(self, job: JobState) -> bool:
        return job.plan is None and self._refusals.is_refused(job.shape, job.length_s)

    def _is_full_for(self, job: JobState, bucket: Bucket, turn: Turn) -> bool:
        """Whether a job can neither start nor evict nor plan anew: told by numbers, without a search."""
        if self.state.cells.free + self._promises.holds.num_devices >= job.demand["devices"]:
            return False
        if job.plan is not None:
            is_settled = job.plan.kind in ("shape", "wait")
        else:
            is_settled = job.request.spot or not self._promises.may_keep(job)
        return is_settled and not self._may_search(bucket, turn)

    def _serve_deferred(self, turn: Turn) -> None:
        """Splits jobs over what their equals have left, so that no split takes from a job that fits as it is."""
        deferred, turn.deferred = turn.deferred, []
        for job, bucket in deferred:
            self._promises.lift(job)
            lacking = self.state.quota.shortage(job.request.tenant, job.demand)
            self._settle(job, bucket, turn, lacking is not None)

    def _settle(self, job: JobState, bucket: Bucket, turn: Turn, by_quota: bool) -> None:
        """Starts a job in any shape, evicts for it, keeps cells for it, or passes it by."""
        request, length = job.request, job.length_s
        if not by_quota and not self._is_refused(job):
            placement = self._place(job, turn, length) or self._make_room(job, turn)
            if placement is not None:
                if not self._wait_for_shape(job, placement, turn):
                    self._reserve(job, placement, turn)
                return
        if self._evict(job, bucket, turn):
            return
        self._plan(job, turn, by_quota=by_quota)
        if job.plan is not None:
            if request.job_id not in self._promises.held:
                self._promises.hold(job)
            return
        if not by_quota:
            self._refusals.refuse(job.shape, length)
        self._pass_by(bucket, turn)

    def _pass_by(self, bucket: Bucket, turn: Turn) -> None:
        """A bucket whose head was refused goes on only if a shorter job could slip in before a plan."""
        if len(bucket.places) <= 1:
            return self.queue.skip(bucket)
        seen = turn.scanned[bucket.key] = turn.scanned.get(bucket.key, 0) + 1
        latest_s = self._promises.latest_s()
        gap_s = 0.0 if latest_s is None else latest_s - turn.now_s
        gap_s = min(gap_s, self._refusals.shortest_s(bucket.key[3]))
        if seen >= self._limits.bucket_scan or not self.queue.has_shorter(bucket, gap_s, self._limits.bucket_scan):
            self.queue.skip(bucket)

    def _place(
        self, job: JobState, turn: Turn, length: float, request: GangRequest | None = None
    ) -> GangPlacement | None:
        """Places a job beside every plan, before those that begin after its end, or over those of lower priority."""
        placement = self._try(job, request) if self._has_room(job, request) else None
        if placement is not None or not self._promises.held:
            return placement
        if self.state.cells.free + self._promises.holds.num_devices < job.demand["devices"]:
            return None
        later = self._promises.holds.later_than(turn.now_s + length)
        every = self._promises.giving_way(job)
        if not (later or every):
            return None
        for lifted in (later, sorted({*later, *every}) if not set(every) <= set(later) else []):
            free = self.state.cells.free + self._promises.holds.devices_of(lifted)
            if not lifted or free < job.demand.get("devices", 0.0):
                continue
            with self._promises.aside(lifted):
                placement = self._try(job, request) if self._has_room(job, request) else None
            if placement is not None:
                return placement
        return None

    def _has_room(self, job: JobState, request: GangRequest | None) -> bool:
        """A look at the numbers before a search."""
        devices = int(job.demand["devices"])
        return self.state.cells.has_room(devices, devices if is_for_one_machine(request or job.request) else job.widest)

    def _try(self, job: JobState, request: GangRequest | None = None) -> GangPlacement | None:
        tenant, quota, asked = job.request.tenant, self.state.quota, request or job.request

        def allowed(roles: tuple[RoleRequest, ...]) -> bool:
            return quota.shortage(tenant, demand_of(roles)) is None

        elastic = any(role.min_replicas is not None for role in job.request.roles)
        mark = self.state.cells.mark()
        placement = place_gang(self.state.cells, asked, quota.may_take(tenant), allowed if elastic else None)
        if placement is None or not quota.tenants:
            return placement
        # A job that takes any type of device is charged for the type it got.
        if quota.shortage(tenant, charge_of(self.state.cells, placement.grains)) is not None:
            self.state.cells.rollback(mark)
            return None
        return placement

    def _reserve(self, job: JobState, placement: GangPlacement, turn: Turn) -> None:
        self.queue.remove(job)
        self._promises.keep(job)
        self.state.hold(job, placement, turn.now_s)
        self._next_expiry_s = min(self._next_expiry_s, job.expires_s)
        turn.reserved[job.request.job_id] = None
        self._promises.break_over(placement.grains, ends_s=job.ends_s(turn.now_s))
        turn.decisions.append(Reserve(job.request.job_id, job.epoch, placement.roles, job.expires_s))

    def _make_room(self, job: JobState, turn: Turn) -> GangPlacement | None:
        """Lets jobs that were served in this pass move over, so that one more fits."""
        if self._promises.held or not turn.reserved:
            return None
        return place_by_moving(self.state, [self.state.jobs[name] for name in turn.reserved], job, self._try)

    def _wait_for_shape(self, job: JobState, placement: GangPlacement, turn: Turn) -> bool:
        """Whether an aggregated job rather waits for a shape that ends it earlier."""
        plan = better_shape(self.state, job, placement, turn.now_s, self._promises.holds)
        if plan is None:
            return False
        for grain in merge_grains(placement.grains):
            self.state.cells.give(grain)
        if plan is not job.plan and not self._promises.may_keep(job):
            plan = replace(plan, grains=(), charge={})  # waits as well, but keeps nothing from those behind
        self._promises.remember(job, plan)
        self._promises.hold(job)
        return True

    def _may_search(self, bucket: Bucket, turn: Turn) -> bool:
        """Whether victims are still to be looked for; those that this pass cannot afford are left to the next one."""
        if not self._limits.may_preempt or self._refusals.is_victimless(bucket.key):
            return False
        self._has_unsearched |= turn.evictions_left <= 0
        return turn.evictions_left > 0

    def _evict(self, job: JobState, bucket: Bucket, turn: Turn) -> bool:
        if job.plan is not None and job.plan.kind == "eviction":
            if any(name in self.state.leaving for name in job.plan.holders):
                self._promises.hold(job)
                return True
            self._promises.forget(job)
        if not self._may_search(bucket, turn):
            return False
        turn.evictions_left -= 1
        lower = self._promises.giving_way(job)
        with self._promises.aside(lower):
            eviction = find_eviction(self.state, job, turn.now_s, self._promises.holds, turn.reserved)
        if eviction is None:
            if turn.reserved:
                self._has_unsearched = True  # who was just served is spared in this pass only
            else:
                self._refusals.note_victimless(bucket.key)
            return False
        if lower:
            self._promises.break_over(eviction.plan.grains, among=lower)
        self._promises.remember(job, eviction.plan)
        self._promises.hold(job)
        self._send_away(job, eviction, turn)
        return True

    def _send_away(self, job: JobState, eviction: Eviction, turn: Turn) -> None:
        if not eviction.victims:
            return
        ids = tuple(victim.request.job_id for victim in eviction.victims)
        epochs = tuple(victim.epoch for victim in eviction.victims)
        kind = Reclaim if eviction.is_reclaim else Preempt
        turn.decisions.append(kind(ids, epochs, job.request.job_id))
        for victim in eviction.victims:
            if victim.released:
                self.state.mark_leaving(victim)
            else:
                with self._promises.aside([job.request.job_id]):
                    self._events.requeue(victim)

    def _plan(self, job: JobState, turn: Turn, *, by_quota: bool) -> None:
        if job.plan is not None and (job.plan.kind != "quota" or by_quota):
            return
        hopeless = (job.request.tenant, job.shape)
        if self._hopeless.get(hopeless) == self.state.cells.supply:
            return
        if job.request.spot or not self._promises.may_keep(job):
            return
        if by_quota and turn.quota_planned.setdefault(job.request.tenant, job.request.job_id) != job.request.job_id:
            return
        if turn.plans_left <= 0:
            return
        turn.plans_left -= 1
        plan = plan_shape(self.state, job, turn.now_s, self._promises.holds)
        if plan is None:
            self._hopeless[hopeless] = self.state.cells.supply
            return
        if by_quota:
            plan = FuturePlan(plan.start_s, (), plan.charge, "quota", plan.holders)
        self._promises.remember(job, plan)

    def _overdue(self, now_s: float) -> list[JobState]:
        """Reservations whose time is up. A start takes time, so those that began are asked again only when due."""
        if now_s < self._next_expiry_s:
            return []
        held = [job for job in self.state.holding.values() if job.status is JobStatus.RESERVED]
        self._next_expiry_s = min((job.expires_s for job in held if job.expires_s > now_s), default=float("inf"))
        return [job for job in held if job.expires_s <= now_s]
