"""Whether an aggregated job starts in the shape that is free now, or waits for one that ends it earlier.

Owns the rule wait against run: 8 x 1 may run as 8, 4+4, 7+1, 3+5 or any other split; `place` finds the best split that
is free, and this compares it with the first time at which the job fits the fewest machines. A split that costs next to
nothing starts at once. Any other starts only when it ends clearly earlier than the wait does, because the devices it
holds longer are missing to everybody behind it. Asked again at every pass; a promise that still stands is kept.
"""

from __future__ import annotations

from dataclasses import replace

from millpond.jobs.scheduling.backfill import Holds, plan_start
from millpond.jobs.scheduling.cells import merge_grains
from millpond.jobs.scheduling.cost import Part, step_s
from millpond.jobs.scheduling.place import GangPlacement
from millpond.jobs.scheduling.state import ClusterState, FuturePlan, JobState
from millpond.jobs.scheduling.types import GangRequest, StepModel

# A split this much slower than the best shape is as good as the best one.
_FREE_STRETCH = 1.05


def whole_request(state: ClusterState, job: JobState) -> GangRequest | None:
    """Returns the request on the fewest machines; None when the job has no choice between shapes."""
    if job.request.aggregation is None:
        return None
    size = state.cells.machine_size
    if job.whole is None or job.whole[0] != size:
        job.whole = (size, _on_fewest(job, size))
    return job.whole[1]


def _on_fewest(job: JobState, machine_size: int) -> GangRequest | None:
    request = job.request
    if request.aggregation is None or request.step is None:
        return None
    devices = int(job.demand["devices"])
    fewest = -(-devices // max(machine_size, 1))
    if devices < 2 or (request.aggregation.max_parts is not None and request.aggregation.max_parts <= fewest):
        return None
    return _on_at_most(job, fewest)


def _on_at_most(job: JobState, parts: int) -> GangRequest:
    """The request on so many machines at most; asked for again and again, so it is kept."""
    found = job.by_parts.get(parts)
    if found is None:
        assert job.request.aggregation is not None, "only aggregated jobs have shapes"
        found = replace(job.request, aggregation=replace(job.request.aggregation, max_parts=parts))
        job.by_parts[parts] = found
    return found


def better_shape(
    state: ClusterState, job: JobState, now: GangPlacement, now_s: float, holds: Holds
) -> FuturePlan | None:
    """Returns the plan worth waiting for; None when the job should start as it was placed (`now`)."""
    aggregation, step = job.request.aggregation, job.request.step
    if aggregation is None or step is None or len(now.parts) <= _fewest_parts(now):
        return None
    if now.step_s <= _FREE_STRETCH * _best_step_s(now, step):
        return None
    latest_end_s = now_s + (1.0 - aggregation.min_gain) * now.step_s * step.num_steps
    plan = job.plan
    if plan is not None and plan.kind in ("shape", "wait") and now_s <= plan.start_s and plan.end_s < latest_end_s:
        return plan
    mark = state.cells.mark()
    for grain in merge_grains(now.grains):
        state.cells.give(grain)
    compact = _compact_plan(state, job, _fewest_parts(now), now_s, holds)
    state.cells.rollback(mark)
    return compact if compact is not None and compact.end_s < latest_end_s else None


def is_promise_best(state: ClusterState, job: JobState, now_s: float) -> bool:
    """Whether a promised shape still ends the job first, told without a search.

    True only when no machine has room for the whole job, and the network is too slow for any split to catch up.
    """
    aggregation, step, plan = job.request.aggregation, job.request.step, job.plan
    if aggregation is None or step is None or plan is None or plan.kind not in ("shape", "wait"):
        return False
    devices = int(job.demand["devices"])
    if now_s > plan.start_s or plan.end_s == float("inf"):
        return False
    if state.cells.has_room(devices, devices):
        return False
    network_gbps = state.cells.network_gbps
    if not network_gbps:
        return True
    if job.least_run is None or job.least_run[0] != network_gbps:
        split_s = 2 * (devices - 1) / devices * step.gradient_bytes / (network_gbps * 1e9)
        floor_s = step.compute_s + (1.0 - step.overlap) * split_s
        job.least_run = (network_gbps, (1.0 - aggregation.min_gain) * floor_s * step.num_steps)
    return plan.end_s < now_s + job.least_run[1]


def plan_shape(state: ClusterState, job: JobState, now_s: float, holds: Holds) -> FuturePlan | None:
    """Returns when a job that fits nowhere now could start, in the shape that ends it first."""
    plan = plan_start(state, job, now_s, holds)
    aggregation, step = job.request.aggregation, job.request.step
    if plan is None or aggregation is None or step is None:
        return plan
    parts = len({grain.node for grain in plan.grains if grain.mask})
    devices = sum(grain.mask.bit_count() for grain in plan.grains)
    room = max((state.cells.nodes[grain.node].model.wiring.num_devices for grain in plan.grains), default=1)
    fewest = -(-devices // max(room, 1))
    if parts <= fewest:
        return plan
    compact = _compact_plan(state, job, fewest, now_s, holds)
    return compact if compact is not None and compact.end_s < plan.end_s else plan


def _compact_plan(state: ClusterState, job: JobState, parts: int, now_s: float, holds: Holds) -> FuturePlan | None:
    """When the job could start on that few machines."""
    return plan_start(state, job, now_s, holds, request=_on_at_most(job, parts), kind="shape")


def _fewest_parts(now: GangPlacement) -> int:
    devices = sum(part.mask.bit_count() for part in now.parts)
    room = max((part.model.wiring.num_devices for part in now.parts), default=1)
    return -(-devices // room)


def _best_step_s(now: GangPlacement, step: StepModel) -> float:
    """Time of a step on one empty machine; without communication for a job that needs several."""
    devices = sum(part.mask.bit_count() for part in now.parts)
    model = now.parts[0].model
    room = model.wiring.num_devices
    if devices > room:
        return step.compute_s
    return step_s([Part(model, model.best_subset((1 << room) - 1, devices))], step)
