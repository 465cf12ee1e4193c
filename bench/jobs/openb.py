"""Allocation at a demand of 130 % on the openb trace, as FGD measures it.

Tasks are drawn from the trace until their devices ask for 130 % of the cluster (cloned at random when the trace is
smaller, dropped at random when it is larger), shuffled, and placed one by one; none leaves. What counts is the share
of all devices that is allocated at the end. One seed is one draw and one order.

    python -m bench.jobs.openb --nodes openb_node_list_gpu_node.csv --pods openb_pod_list_default.csv --seeds 10 --json
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from millpond.jobs.scheduling.fragmentation import WHOLE, DeviceNode, FractionalCluster, TaskClass


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the seeds and prints the result."""
    parser = argparse.ArgumentParser(prog="bench.jobs.openb", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--nodes", type=Path, required=True, help="openb_node_list_*.csv")
    parser.add_argument("--pods", type=Path, required=True, help="openb_pod_list_*.csv")
    parser.add_argument("--seeds", type=int, default=10, help="number of seeds, 42 and up")
    parser.add_argument("--demand", type=float, default=1.3, help="demand as a multiple of the cluster's devices")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    models: dict[str, int] = {}
    nodes = load_nodes(options.nodes, models)
    tasks = load_tasks(options.pods, models)
    runs = [run(nodes, tasks, options.demand, seed) for seed in range(42, 42 + options.seeds)]
    allocations = [entry["allocation_percent"] for entry in runs]
    result = {
        "bench": "jobs.openb",
        "nodes": options.nodes.name,
        "pods": options.pods.name,
        "demand": options.demand,
        "allocation_percent_mean": round(statistics.fmean(allocations), 2),
        "allocation_percent_min": min(allocations),
        "allocation_percent_max": max(allocations),
        "runs": runs,
    }
    if options.json:
        print(json.dumps(result))
    else:
        print(f"{options.pods.name}: {result['allocation_percent_mean']} % allocated, mean of {len(runs)} seeds")
    return 0


def load_nodes(path: Path, models: dict[str, int]) -> list[DeviceNode]:
    """Reads nodes; numbers their device models into `models`."""
    with path.open(newline="") as file:
        return [
            DeviceNode(
                int(row["cpu_milli"]),
                int(row["memory_mib"]),
                int(row["gpu"]),
                models.setdefault(row["model"], len(models)),
            )
            for row in csv.DictReader(file)
        ]


def load_tasks(path: Path, models: dict[str, int]) -> list[TaskClass]:
    """Reads one task a row."""
    tasks = []
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            mask = 0
            for name in filter(None, (row.get("gpu_spec") or "").split("|")):
                mask |= 1 << models.setdefault(name, len(models))
            devices = int(row["num_gpu"])
            milli = int(row["gpu_milli"]) if devices == 1 else WHOLE
            tasks.append(TaskClass(int(row["cpu_milli"]), int(row["memory_mib"]), devices, milli, mask))
    return tasks


def run(nodes: Sequence[DeviceNode], trace: Sequence[TaskClass], demand: float, seed: int) -> dict[str, float]:
    """Places one draw of tasks and returns what was allocated."""
    capacity = sum(node.devices for node in nodes) * WHOLE
    tasks = draw(trace, demand * capacity, random.Random(seed))
    counts = Counter(trace)
    classes = list(counts)
    numbers = {item: index for index, item in enumerate(classes)}
    cluster = FractionalCluster(nodes, classes, [float(counts[item]) for item in classes])
    started = time.perf_counter()
    allocated = placed = 0
    for task in tasks:
        if cluster.put(numbers[task]) is not None:
            allocated += task.devices * task.milli
            placed += 1
    seconds = time.perf_counter() - started
    return {
        "seed": seed,
        "tasks": len(tasks),
        "placed": placed,
        "allocation_percent": round(100 * allocated / capacity, 2),
        "seconds": round(seconds, 1),
    }


def draw(trace: Sequence[TaskClass], wanted: float, rng: random.Random) -> list[TaskClass]:
    """Clones or drops tasks at random until they ask for `wanted` device thousandths; then shuffles."""
    tasks = list(trace)
    total = sum(task.devices * task.milli for task in tasks)
    while total < wanted:
        task = rng.choice(trace)
        tasks.append(task)
        total += task.devices * task.milli
    rng.shuffle(tasks)
    while total > wanted and len(tasks) > 1:
        task = tasks[-1]
        if total - task.devices * task.milli < wanted:
            break
        tasks.pop()
        total -= task.devices * task.milli
    return tasks


if __name__ == "__main__":
    raise SystemExit(main())
