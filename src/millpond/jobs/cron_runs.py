"""When a cron makes its next job, and which of its jobs go. Pure; called by the controller. Schedules are in UTC."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from millpond.api.job import Concurrency, JobSpec
from millpond.jobs.cron import parse_schedule
from millpond.jobs.state import JobState


def next_run_s(state: JobState) -> float | None:
    """When the next job is due; None for never."""
    cron, progress = state.spec.cron, state.cron
    if cron is None or progress is None or progress.is_suspended or state.is_deleting:
        return None
    last = datetime.fromtimestamp(progress.last_s, UTC)
    found = parse_schedule(cron.schedule).next_after(last)
    if found is None or (cron.deadline_s is not None and found.timestamp() > cron.deadline_s):
        return None
    return found.timestamp()


def due_run(state: JobState, now_s: float) -> float | None:
    """The time of the run that is due: of several missed ones the last. Marks it as taken."""
    due = next_run_s(state)
    if due is None or due > now_s:
        return None
    assert state.cron is not None
    state.cron.last_s = due
    for _ in range(1000):  # a controller that slept for long makes one job, not all it missed
        later = next_run_s(state)
        if later is None or later > now_s:
            return due
        state.cron.last_s = due = later
    state.cron.last_s = now_s
    return due


def run_spec(state: JobState, due_s: float) -> JobSpec:
    """The spec of the job for one run. Its name tells the minute, so that a run is never made twice."""
    stamp = datetime.fromtimestamp(due_s, UTC).strftime("%Y%m%d%H%M")
    name = f"{state.spec.name[:50].rstrip('-')}-{stamp}"
    return dataclasses.replace(state.spec, name=name, cron=None)


def live_runs(state: JobState, jobs: Mapping[str, JobState]) -> list[JobState]:
    """Jobs of this cron that have not ended."""
    runs: Sequence[str] = state.cron.runs if state.cron is not None else ()
    return [jobs[uid] for uid in runs if uid in jobs and not jobs[uid].is_final]


def may_run(state: JobState, jobs: Mapping[str, JobState]) -> bool:
    """Whether the concurrency policy lets a job be made now; with Replace the others go."""
    assert state.spec.cron is not None
    return state.spec.cron.concurrency is not Concurrency.FORBID or not live_runs(state, jobs)


def outdated_runs(state: JobState, jobs: Mapping[str, JobState]) -> list[JobState]:
    """Ended jobs beyond the history's limit, oldest first."""
    assert state.spec.cron is not None
    assert state.cron is not None
    ended = [jobs[uid] for uid in state.cron.runs if uid in jobs and jobs[uid].is_final]
    return ended[: max(0, len(ended) - state.spec.cron.history_limit)]
