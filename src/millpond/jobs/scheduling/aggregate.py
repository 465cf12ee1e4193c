"""Whether an aggregated job starts in the shape that is free now, or waits for one that ends it earlier.

Owns the rule wait against run: 8 x 1 may run as 8, 4+4, 7+1, 3+5 or any other split; `place` finds the best split that
is free, and this compares it with the splits that predicted ends will free. Waiting must pay by `min_gain` of the
time left, so that a wrong estimate costs little. Asked again at every pass: a plan that turned bad is dropped.
"""

from __future__ import annotations

from millpond.jobs.scheduling.backfill import Holds, place_without
from millpond.jobs.scheduling.cells import merge_grains
from millpond.jobs.scheduling.place import GangPlacement
from millpond.jobs.scheduling.quota import charge_of
from millpond.jobs.scheduling.state import ClusterState, FuturePlan, JobState

# Predicted ends that are looked at: further ones are too uncertain to wait for.
_LOOK_AHEAD = 24


def better_shape(
    state: ClusterState, job: JobState, now: GangPlacement, now_s: float, holds: Holds
) -> FuturePlan | None:
    """Returns the plan worth waiting for; None when the job should start as it was placed (`now`)."""
    aggregation, step = job.request.aggregation, job.request.step
    if aggregation is None or step is None or len(now.parts) <= 1:
        return None
    run_s = now.step_s * step.num_steps
    least_s = step.compute_s * step.num_steps
    latest_s = now_s + (run_s - least_s) - aggregation.min_gain * run_s
    mark = state.cells.mark()
    for grain in reversed(now.grains):
        state.cells.give(grain)
    ends = sorted((other.ends_s(now_s), other.number, other) for other in state.holding.values())
    best: FuturePlan | None = None
    best_end_s = now_s + (1.0 - aggregation.min_gain) * run_s
    for count, (start_s, _, _) in enumerate(ends[:_LOOK_AHEAD], start=1):
        if start_s > latest_s:
            break
        gone = [other for _, _, other in ends[:count]]
        placement = place_without(state, job, gone, holds)
        if placement is not None and start_s + placement.step_s * step.num_steps < best_end_s:
            best_end_s = start_s + placement.step_s * step.num_steps
            holders = tuple(other.request.job_id for other in gone)
            charge = charge_of(state.cells, placement.grains)
            best = FuturePlan(start_s, merge_grains(placement.grains), charge, "shape", holders)
    state.cells.rollback(mark)
    return best
