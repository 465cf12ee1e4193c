"""A workload on a simulated cluster: completion times, waits, and what the rings run on.

Reads jobs in three forms, told apart by their header: Philly (`timestamp,duration,num_gpus,...`: given lengths), Pollux
(`name,time,application,...`: step times from `<application>/placements.csv` beside the file) and our own mix
(`name,time,num_gpus,steps,compute_s,gradient_bytes`). The cluster file is JSON: `{"kind": "dgx-1v", "nodes": 64, ...}`.

    python -m bench.jobs.workload --jobs FILE --cluster FILE --policy rings --json
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from millpond.api.topology import Nic, dgx1v_wiring, nvswitch_wiring, plain_wiring
from millpond.jobs.clusters.simulated import JobRecord, SimulatedCluster, SimulatedJob
from millpond.jobs.scheduling.scheduler import Scheduler
from millpond.jobs.scheduling.turn import SchedulerLimits
from millpond.jobs.scheduling.types import (
    AggregationRequest,
    GangRequest,
    NodeSpec,
    ResourceRequest,
    RoleRequest,
    StepModel,
)

POLICIES = {
    "rings": "wiring decides",
    "packed": "best fit that knows no wiring: Kubernetes with MostAllocated",
    "blind": "each pod to the emptiest node, as Kubernetes does by default (LeastAllocated)",
    "random": "each pod to any node that has room",
    "aggregate": "rings, and jobs of one-device workers wait for a better shape when it pays",
    "whole": "the order of aggregate, but on the fewest nodes always",
    "fixed": "rings, and a job of up to one node takes one node only",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one policy and prints the result."""
    parser = argparse.ArgumentParser(prog="bench.jobs.workload", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--jobs", type=Path, required=True)
    parser.add_argument("--cluster", type=Path, required=True, help="JSON: kind, nodes, devices, nic_gbps, rack_size")
    parser.add_argument(
        "--policy",
        choices=POLICIES,
        default="rings",
        help="; ".join(f"{name}: {what}" for name, what in POLICIES.items()),
    )
    parser.add_argument("--limit", type=int, default=0, help="only the first jobs")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    cluster = json.loads(options.cluster.read_text())
    jobs = load_jobs(options.jobs, options.policy, cluster, options.limit)
    is_random = options.policy == "random"
    limits = SchedulerLimits(
        is_wired=options.policy != "packed", is_blind=is_random or options.policy == "blind", is_random=is_random
    )
    simulated = SimulatedCluster(load_nodes(cluster), Scheduler(limits))
    begun = time.perf_counter()
    report = simulated.run(jobs)
    seconds = time.perf_counter() - begun
    result = {
        "bench": "jobs.workload",
        "jobs": options.jobs.name,
        "policy": options.policy,
        "policy_is": POLICIES[options.policy],
        **summarise(list(report.jobs.values())),
        "direct_bytes_percent": round(100 * bytes_share(jobs, report.jobs), 1),
        "evictions": report.evictions,
        "events": report.num_events,
        "events_per_minute": round(60 * report.num_events / seconds),
    }
    print(json.dumps(result) if options.json else "\n".join(f"{key}: {value}" for key, value in result.items()))
    return 0


def load_nodes(cluster: dict[str, object]) -> list[NodeSpec]:
    """Builds the nodes a cluster file describes."""
    devices = int(str(cluster.get("devices", 8)))
    kind = str(cluster.get("kind", "plain"))
    if kind == "dgx-1v":
        wiring = dgx1v_wiring()
    elif kind == "nvswitch":
        wiring = nvswitch_wiring(devices)
    else:
        wiring = plain_wiring(devices)
    if "nic_gbps" in cluster:
        wiring = replace(wiring, nics=(Nic(float(str(cluster["nic_gbps"]))),))
    rack = int(str(cluster.get("rack_size", 16)))
    count = int(str(cluster["nodes"]))
    return [NodeSpec(f"n{i}", wiring, kind, 1e6, 1 << 50, f"rack{i // rack}") for i in range(count)]


def load_jobs(path: Path, policy: str, cluster: dict[str, object], limit: int) -> list[SimulatedJob]:
    """Reads jobs of any of the three forms."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows = rows[:limit] if limit else rows
    if "duration" in rows[0]:
        return _philly(rows, policy, cluster)
    jobs = []
    for row in rows:
        size = int(row["num_gpus"] if "num_gpus" in row else row["num_replicas"])
        step = _pollux_step(path, row) if "application" in row else _own_step(row)
        jobs.append(SimulatedJob(_request(row["name"], size, float(row["time"]), policy, cluster=cluster, step=step)))
    return jobs


def _own_step(row: dict[str, str]) -> StepModel:
    return StepModel(float(row["compute_s"]), int(float(row["gradient_bytes"])), 0.0, int(row["steps"]))


def _pollux_step(path: Path, row: dict[str, str]) -> StepModel:
    """Compute time of one device, and the bytes that explain the synchronisation measured on two in one node."""
    with (path.parent / row["application"] / "placements.csv").open(newline="") as file:
        measured = list(csv.DictReader(file))
    alone = [entry for entry in measured if entry["placement"] == "1"]
    pair = [entry for entry in measured if entry["placement"] == "2"]
    compute_s = statistics.median(float(entry["step_time"]) for entry in alone)
    sync_s = statistics.median(float(entry["sync_time"]) for entry in pair) if pair else 0.0
    return StepModel(compute_s, int(sync_s * 12e9), 0.0, 5000)


def _philly(rows: list[dict[str, str]], policy: str, cluster: dict[str, object]) -> list[SimulatedJob]:
    times = [datetime.fromisoformat(row["timestamp"]).timestamp() for row in rows]
    first = min(times)
    capacity = int(str(cluster["nodes"])) * int(str(cluster.get("devices", 8)))
    jobs = []
    for number, (row, at) in enumerate(zip(rows, times, strict=True)):
        size, run_s = min(int(row["num_gpus"]), capacity), max(float(row["duration"]), 1.0)
        request = _request(f"philly-{number}", size, at - first, policy, cluster=cluster, step=None)
        jobs.append(SimulatedJob(replace(request, run_s_estimate=run_s), run_s))
    return jobs


def _request(
    name: str, size: int, at: float, policy: str, *, cluster: dict[str, object], step: StepModel | None
) -> GangRequest:
    devices = int(str(cluster.get("devices", 8)))
    whole = policy == "fixed" and size <= devices
    role = RoleRequest("worker", 1 if whole else size, ResourceRequest(size if whole else 1))
    most = -(-size // devices) if policy == "whole" else None
    aggregation = AggregationRequest("worker", most) if policy in ("aggregate", "whole") else None
    estimate = step.compute_s * step.num_steps if step is not None else None
    return GangRequest(
        name, "team", (role,), submitted_s=at, run_s_estimate=estimate, aggregation=aggregation, step=step
    )


def bytes_share(jobs: Sequence[SimulatedJob], records: Mapping[str, JobRecord]) -> float:
    """Share of the bytes of all rings that ran on direct links: each edge counts by its job's steps and gradients."""
    direct = total = 0.0
    for job in jobs:
        record, step = records[job.request.job_id], job.request.step
        edges = record.direct + record.host + record.network
        if edges and step is not None:
            volume = 2 * (edges - 1) / edges * step.gradient_bytes * step.num_steps
            direct += volume * record.direct
            total += volume * edges
    return direct / total if total else 0.0


def summarise(records: Sequence[JobRecord]) -> dict[str, float]:
    """Completion times, waits and wires of all jobs that ended."""
    done = [record for record in records if record.ended_s is not None]
    jct = sorted((record.ended_s or 0.0) - record.submitted_s for record in done)
    wait = [(record.started_s or 0.0) - record.submitted_s for record in done]
    held = max(sum(record.devices for record in done), 1)
    direct = sum(record.direct for record in done)
    edges = sum(record.direct + record.host + record.network for record in done)
    return {
        "ended": len(done),
        "lost": len(records) - len(done),
        "jct_mean_s": round(statistics.fmean(jct), 1),
        "jct_p50_s": round(jct[len(jct) // 2], 1),
        "jct_p95_s": round(jct[int(0.95 * len(jct))], 1),
        "wait_mean_s": round(statistics.fmean(wait), 1),
        "wait_per_device_s": round(sum(w * r.devices for w, r in zip(wait, done, strict=True)) / held, 1),
        "run_mean_s": round(statistics.fmean(record.run_s for record in done), 1),
        "direct_share_percent": round(100 * direct / max(edges, 1), 1),
        "makespan_s": round(max(record.ended_s or 0.0 for record in done), 1),
    }


if __name__ == "__main__":
    raise SystemExit(main())
