"""`python -m millpond.jobs.clusters.kubernetes operator|agent`: what the containers of the chart run."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import socket
import sys
import time
import uuid
from collections import Counter
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any

from millpond.base.errors import MillpondError
from millpond.jobs.clusters.kubernetes.agent import find_topology, keep_posted
from millpond.jobs.clusters.kubernetes.client import KubernetesApi
from millpond.jobs.clusters.kubernetes.health import Health
from millpond.jobs.clusters.kubernetes.leader import Leader, LeaseSettings
from millpond.jobs.clusters.kubernetes.operator import Operator, OperatorSettings, check_access
from millpond.jobs.clusters.kubernetes.settings import read_settings
from millpond.jobs.collecting import Collecting

_STILL_S = 120.0  # so long a turn may take before the process counts as stuck


async def run_operator(api: KubernetesApi, settings: OperatorSettings, lease: LeaseSettings, port: int) -> None:
    """Waits for the Lease, runs while it holds, and returns when it is lost or a signal comes."""
    identity = f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}"
    leader = Leader(api, identity, lease)
    operator: Operator | None = None
    pulse = [0, time.monotonic()]

    def is_well() -> bool:
        if operator is None or operator.turns != pulse[0]:
            pulse[:] = [0 if operator is None else operator.turns, time.monotonic()]
        return time.monotonic() - pulse[1] < _STILL_S

    def read() -> Mapping[str, float]:
        return _metrics(operator, leader)

    health = Health(is_well, read)
    await health.start("0.0.0.0", port)
    try:
        await check_access(api, settings)
        await leader.acquire()
        logging.info("%s leads", identity)
        operator = Operator(api, settings, time.time, identity=identity)
        with Collecting() as operator.collecting:
            await _first_done(operator.run(), leader.keep())
    finally:
        if leader.is_leading:
            await leader.release()
        await health.stop()


async def _first_done(*jobs: Coroutine[Any, Any, None]) -> None:
    tasks = [asyncio.create_task(job) for job in jobs]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
    for result in done:
        if isinstance(result, Exception):
            raise result


def _metrics(operator: Operator | None, leader: Leader) -> dict[str, float]:
    values: dict[str, float] = {"millpond_operator_leader": float(leader.is_leading)}
    if operator is not None:
        states = operator.controller.jobs.values()
        counts = Counter((state.framework.kind, state.phase.value) for state in states)
        values["millpond_operator_turns_total"] = float(operator.turns)
        values["millpond_operator_nodes"] = float(len(operator.cluster.machines))
        values |= {f'millpond_jobs{{kind="{kind}",phase="{phase}"}}': float(n) for (kind, phase), n in counts.items()}
    return values


async def run_agent(api: KubernetesApi, node: str, declared: Path | None, every_s: float) -> None:
    """Posts this machine's Topology for as long as it runs."""
    await keep_posted(api, node, lambda: find_topology(node, declared, Path("/sys")), every_s)


def main(arguments: list[str] | None = None) -> int:
    """The entry."""
    options = _parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        asyncio.run(_run(options))
    except MillpondError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except asyncio.CancelledError:
        return 0
    return 0


async def _run(options: argparse.Namespace) -> None:
    task = asyncio.current_task()
    assert task is not None
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, task.cancel)
    settings = read_settings(options.settings) if options.what == "operator" else None
    api = await KubernetesApi.connect(options.kubeconfig, options.context)
    try:
        if settings is None:
            await run_agent(api, options.node, options.topology, options.every)
        else:
            lease = LeaseSettings(namespace=options.lease_namespace)
            await run_operator(api, settings, lease, options.health_port)
    finally:
        await api.close()


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m millpond.jobs.clusters.kubernetes", description=__doc__)
    parser.add_argument("--kubeconfig", type=Path, help="default: the pod's service account")
    parser.add_argument("--context", help="a context of the kubeconfig")
    kinds = parser.add_subparsers(dest="what", required=True)
    operator = kinds.add_parser("operator", help="runs jobs")
    operator.add_argument("--settings", type=Path, help="see docs/guide/kubernetes.md")
    operator.add_argument("--lease-namespace", default="millpond-system")
    operator.add_argument("--health-port", type=int, default=8080)
    agent = kinds.add_parser("agent", help="posts how this machine's accelerators are wired")
    agent.add_argument("--node", default=socket.gethostname(), help="the node's name")
    agent.add_argument("--topology", type=Path, help="a file that declares the wiring")
    agent.add_argument("--every", type=float, default=60.0, help="seconds between two looks")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
