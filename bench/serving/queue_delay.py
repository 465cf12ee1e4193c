"""How long a lone request waits beyond its queue delay until its batch is handed over, beside a timer of the kernel.

    python -m bench.serving.queue_delay [--delay-us 5000] [--requests 400] [--rounds 3] [--json FILE]

The registry and the batcher in this process, on the event loop that serves, with an instance that does nothing; no
sockets and no worker. In turns with it a process of its own sets a timer of the kernel to the same delay and waits for
nothing else: what that is late is the machine's. The bar is 0 at p99.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import uvloop

from bench.facts import describe_machine
from millpond.serve.servables.backend import Ended, ExecutionTiming, Freed, ModelFolder, Replies
from millpond.serve.servables.batching.alarm import Alarm
from millpond.serve.servables.config import DynamicBatching, ServableConfig
from millpond.serve.servables.messages import InferRequest, InferResponse
from millpond.serve.servables.registry import Servables
from millpond.serve.servables.tensors import Tensor, TensorSpec
from tests.support.held_instance import HeldInstance

_WARM = 130  # requests, after which a queue knows how late this machine is


class Instance(HeldInstance):
    """Answers at once, and notes how long each request had waited."""

    name = "nothing"

    def __init__(self) -> None:
        self.waits_ns: list[int] = []

    def begin(
        self, requests: Sequence[InferRequest], replies: Replies, ended: Ended, freed: Freed | None = None
    ) -> None:
        now_ns = time.monotonic_ns()
        self.waits_ns += [now_ns - request.arrived_ns for request in requests]
        for index, request in enumerate(requests):
            replies.send(index, InferResponse(request.model, 1, dict(request.inputs)))
        ended(ExecutionTiming())


async def lone_requests(delay_us: int, count: int) -> list[int]:
    """Returns by how many nanoseconds each request waited longer than the delay."""
    instance = Instance()
    spec = TensorSpec("X", "FP32", (4,))
    servables = Servables({"nothing": instance})
    batching = DynamicBatching(max_delay_us=delay_us)
    config = ServableConfig("m", "nothing", (spec,), (spec,), max_batch_size=64, dynamic_batching=batching)
    await servables.add(config, ModelFolder(None, 1))
    array = np.zeros((1, 4), np.float32)
    for _ in range(_WARM + count):
        await servables.infer(InferRequest("m", {"X": Tensor("X", "FP32", array)}))
    await servables.close()
    return [wait_ns - delay_us * 1000 for wait_ns in instance.waits_ns[_WARM:]]


async def lone_timer(delay_us: int, count: int) -> list[int]:
    """Returns by how many nanoseconds a timer of the kernel was late."""
    late: list[int] = []
    rung = asyncio.Event()
    alarm = Alarm(rung.set)
    for _ in range(count):
        at_ns = time.monotonic_ns() + delay_us * 1000
        alarm.set(at_ns)
        await rung.wait()
        rung.clear()
        late.append(time.monotonic_ns() - at_ns)
    alarm.close()
    return late


def figures(late_ns: list[int]) -> dict[str, float]:
    """Returns percentiles in milliseconds, and how many were late at all."""
    ordered = sorted(late_ns)
    found = {
        f"p{share}_ms": round(ordered[min(len(ordered) - 1, len(ordered) * share // 100)] / 1e6, 3)
        for share in (50, 90, 99)
    }
    return {**found, "max_ms": round(ordered[-1] / 1e6, 3), "late": sum(ns > 0 for ns in ordered) / len(ordered)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delay-us", type=int, default=5000)
    parser.add_argument("--requests", type=int, default=400, help="Of every round, after those it learns from.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--timer", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.timer:
        print(json.dumps(uvloop.run(lone_timer(given.delay_us, given.requests))))
        return
    requests: list[int] = []
    timers: list[int] = []
    command = [sys.executable, "-m", "bench.serving.queue_delay", "--timer"]
    for _ in range(given.rounds):
        requests += uvloop.run(lone_requests(given.delay_us, given.requests))
        flags = ["--delay-us", str(given.delay_us), "--requests", str(given.requests)]
        done = subprocess.run([*command, *flags], capture_output=True, text=True, check=True, timeout=600)
        timers += json.loads(done.stdout)
    found = {"machine": describe_machine(), "requests": figures(requests), "timer": figures(timers)}
    print(json.dumps({name: found[name] for name in ("requests", "timer")}, indent=2))
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
