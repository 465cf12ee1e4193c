"""Jobs as numbers for Prometheus.

Owns the names and the labels. A label is a kind or a phase, of which there are few: never a job, a namespace, a tenant
or a user, so the number of series does not grow with use. Pure; called by `jobs.rest`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TypeVar

from millpond.api.job import JobPhase, JobStatus

_Key = TypeVar("_Key")


def jobs_metrics(jobs: Iterable[JobStatus], now_s: float) -> str:
    """The text that a scrape gets."""
    phases: Counter[tuple[str, str]] = Counter()
    restarts: Counter[str] = Counter()
    devices: Counter[str] = Counter({"requested": 0, "allocated": 0})
    longest_s = 0.0
    for job in jobs:
        phases[job.kind, job.phase.value] += 1
        restarts[job.kind] += job.restarts
        if not job.phase.is_final:
            devices["requested"] += job.requested_devices
            devices["allocated"] += job.allocated_devices
        if job.phase in (JobPhase.CREATED, JobPhase.QUEUING):
            longest_s = max(longest_s, now_s - job.created_s)
    lines = ["# TYPE millpond_jobs gauge"]
    lines += [f'millpond_jobs{{kind="{kind}",phase="{phase}"}} {count}' for (kind, phase), count in _sorted(phases)]
    lines.append("# TYPE millpond_jobs_restarts gauge")
    lines += [f'millpond_jobs_restarts{{kind="{kind}"}} {count}' for kind, count in _sorted(restarts)]
    lines.append("# TYPE millpond_jobs_devices gauge")
    lines += [f'millpond_jobs_devices{{state="{state}"}} {count}' for state, count in _sorted(devices)]
    lines += ["# TYPE millpond_jobs_longest_wait_seconds gauge", f"millpond_jobs_longest_wait_seconds {longest_s:.3f}"]
    return "\n".join(lines) + "\n"


def _sorted(counts: Counter[_Key]) -> list[tuple[_Key, int]]:
    return sorted(counts.items(), key=str)
