"""Decision time and memory with a large cluster and a long queue.

Fills a cluster of DGX-1 nodes to the last device, queues gangs behind it, then ends running jobs one by one and times
every step that follows. A sample is the time of one event and the step after it, over the decisions it made (at least
one). The numbers are printed as they are.

    python -m bench.jobs.scale --accelerators 100000 --pending 10000 --events 2000 --json
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import time
from collections.abc import Sequence

from millpond.api.topology import dgx1v_wiring
from millpond.jobs.collecting import Collecting
from millpond.jobs.scheduling.scheduler import Scheduler
from millpond.jobs.scheduling.types import (
    Evicted,
    Finished,
    GangRequest,
    NodeJoined,
    NodeSpec,
    Preempt,
    Reclaim,
    Release,
    Reserve,
    ResourceRequest,
    RoleRequest,
    Started,
    Submitted,
    TenantChanged,
    TenantSpec,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the bench and prints one JSON object."""
    parser = argparse.ArgumentParser(prog="bench.jobs.scale", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--accelerators", type=int, default=100_000)
    parser.add_argument("--pending", type=int, default=10_000)
    parser.add_argument("--events", type=int, default=1000, help="jobs that end, one after the other")
    parser.add_argument("--tenants", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    result = Scale(options.accelerators, options.tenants, options.seed).run(options.pending, options.events)
    print(json.dumps(result) if options.json else "\n".join(f"{key}: {value}" for key, value in result.items()))
    return 0


class Scale:
    """One cluster and its queue."""

    def __init__(self, accelerators: int, tenants: int, seed: int) -> None:
        self._rng = random.Random(seed)
        self._tenants = tenants
        self._scheduler = Scheduler()
        self._now_s = 0.0
        self._count = 0
        self._accelerators = accelerators
        wiring = dgx1v_wiring()
        for index in range(tenants):
            tenant = TenantSpec(f"t{index}", guaranteed={"devices": accelerators / tenants})
            self._scheduler.apply(TenantChanged(tenant), 0)
        for index in range(accelerators // 8):
            node = NodeSpec(f"n{index}", wiring, "V100", 96.0, 1 << 38, f"rack{index // 16}")
            self._scheduler.apply(NodeJoined(node), 0)

    def run(self, pending: int, events: int) -> dict[str, float]:
        """Fills, queues, and measures."""
        begun = time.perf_counter()
        while self._held() < 0.999 * self._accelerators:
            for _ in range(200):
                self._submit()
            if not any(isinstance(decision, Reserve) for decision in self._step()):
                break
        for _ in range(len(self._scheduler.queue), pending):
            self._submit()
        fill_s = time.perf_counter() - begun
        self._step()
        samples, steps, rests, decisions = [], [], [0.0], 0
        with Collecting() as collecting:  # as the controller's processes do
            for _ in range(events):
                taken, made = self._event()
                steps.append(taken)
                decisions += made
                samples += [taken / max(made, 1)] * max(made, 1)
                self._submit()
                begun = time.perf_counter()
                collecting.rest(self._now_s, is_idle=False)
                rests.append(time.perf_counter() - begun)
        samples.sort()
        steps.sort()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {
            "accelerators": self._accelerators,
            "running": len(self._scheduler.state.holding),
            "pending": len(self._scheduler.queue),
            "fill_s": round(fill_s, 1),
            "events": events,
            "decisions": decisions,
            "decision_ms_p50": round(1000 * samples[len(samples) // 2], 3),
            "decision_ms_p99": round(1000 * samples[int(0.99 * len(samples))], 3),
            "step_ms_p50": round(1000 * steps[len(steps) // 2], 3),
            "step_ms_p99": round(1000 * steps[int(0.99 * len(steps))], 3),
            "step_ms_max": round(1000 * steps[-1], 3),
            "rest_ms_max": round(1000 * max(rests), 3),
            "peak_memory_mib": round(peak / 2**20),
        }

    def _event(self) -> tuple[float, int]:
        """Ends a job; returns the seconds that takes and how many reservations follow."""
        holding = self._scheduler.state.holding
        job_id = next(iter(holding)) if self._rng.random() < 0.5 else self._rng.choice(list(holding))
        epoch = holding[job_id].epoch
        self._now_s += 1.0
        begun = time.perf_counter()
        self._scheduler.apply(Finished(job_id, epoch), self._now_s)
        made = self._scheduler.step(self._now_s)
        taken = time.perf_counter() - begun
        self._start(made)
        return taken, sum(isinstance(decision, Reserve) for decision in made)

    def _held(self) -> float:
        return sum(usage.get("devices", 0.0) for usage in self._scheduler.state.quota.usage.values())

    def _submit(self) -> None:
        self._count += 1
        size = self._rng.choice((1, 1, 1, 2, 4, 8, 8, 16, 32, 64))
        request = GangRequest(
            f"job{self._count}",
            f"t{self._rng.randrange(self._tenants)}",
            (RoleRequest("worker", size, ResourceRequest(1, "V100", 4.0)),),
            submitted_s=self._now_s,
            run_s_estimate=self._rng.uniform(600, 86_400),
        )
        self._scheduler.apply(Submitted(request), self._now_s)

    def _step(self) -> list[object]:
        made = self._scheduler.step(self._now_s)
        self._start(made)
        return list(made)

    def _start(self, made: Sequence[object]) -> None:
        for decision in made:
            if isinstance(decision, Preempt | Reclaim):
                for job_id, epoch in zip(decision.job_ids, decision.epochs, strict=True):
                    self._scheduler.apply(Evicted(job_id, epoch), self._now_s)
            if isinstance(decision, Release):
                self._scheduler.apply(Started(decision.job_id, decision.epoch, decision.role), self._now_s)


if __name__ == "__main__":
    raise SystemExit(main())
