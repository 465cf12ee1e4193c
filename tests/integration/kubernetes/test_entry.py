"""The container's command as a process: it waits for the Lease, runs jobs, answers probes, and leaves on SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from pathlib import Path

import yaml

from millpond.jobs.clusters.kubernetes.agent import keep_posted
from millpond.jobs.clusters.kubernetes.health import Health
from millpond.jobs.clusters.kubernetes.topology import make_topology, parse_nvidia_topology
from tests.integration.kubernetes.api_server import make_node
from tests.integration.kubernetes.conftest import Room
from tests.integration.kubernetes.objects import millpond_job

DGX = Path(__file__).parents[2] / "unit/jobs/kubernetes/topologies/dgx1v.txt"


async def test_process_leads_runs_a_job_and_gives_the_lease_back(room: Room, tmp_path: Path) -> None:
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "k", "cluster": {"server": room.url}}],
        "users": [{"name": "u", "user": {"token": "secret"}}],
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
    }  # fmt: skip
    (tmp_path / "config").write_text(yaml.safe_dump(config))
    await room.server.put(make_node("n1"))
    await room.server.put(millpond_job("s", roles={"worker": {"image": "i", "run": "r"}}))
    room.run_pods()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "millpond.jobs.clusters.kubernetes", "--kubeconfig", str(tmp_path / "config"),
        "operator", "--health-port", "0", stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        await room.phase_is("millpondjobs", "s", "Running")
        lease = room.server.find("leases", "millpond-operator", "millpond-system")
        assert lease["spec"]["holderIdentity"]
        assert {request.headers.get("Authorization") for request in room.server} == {"Bearer secret"}
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        _, said = await process.communicate()
    lease = room.server.find("leases", "millpond-operator", "millpond-system")
    assert lease["spec"].get("holderIdentity", "") == "", said.decode()


async def test_agent_posts_once_and_again_when_a_device_fails(room: Room) -> None:
    wiring = parse_nvidia_topology(DGX.read_text(), "V100")
    found = [make_topology("n1", wiring, "V100"), make_topology("n1", wiring, "V100"),
             make_topology("n1", wiring, "V100", [3])]  # fmt: skip
    answers = iter(found)
    await keep_posted(room.api, "n1", lambda: next(answers), 0.0, rounds=3)
    assert room.server.find("topologies", "n1", "")["spec"] == found[2]["spec"]
    assert len(room.server["post"]) == len(room.server["put"]) == 1


async def test_posted_wiring_decides_where_a_pair_goes(room: Room) -> None:
    """Of a DGX-1 whose devices 1, 2, 5 and 6 are broken, 0-3, 0-4, 4-7 are double links: a pair must be one of them."""
    wiring = parse_nvidia_topology(DGX.read_text(), "V100")
    await room.server.put(make_node("n1", cpus=8, devices=8))
    await room.server.put(make_topology("n1", wiring, "V100", [1, 2, 5, 6]))
    await room.start()
    await room.server.put(millpond_job("pair", roles={"worker": {"image": "i", "run": "r", "devices": 2}}))
    pod = (await room.until(room.pods))["pair-worker-0"]
    devices = {int(one) for one in pod["metadata"]["annotations"]["jobs.millpond.io/devices"].split(",")}
    assert devices in ({0, 3}, {0, 4}, {4, 7})


async def test_probe_says_whether_it_stands_still() -> None:
    well = [True]
    health = Health(lambda: well[0], lambda: {"millpond_operator_leader": 1.0})
    port = await health.start("127.0.0.1", 0)
    try:
        assert (await _get(port, "/healthz")).startswith("HTTP/1.1 200")
        well[0] = False
        assert (await _get(port, "/healthz")).startswith("HTTP/1.1 503")
        assert (await _get(port, "/metrics")).endswith("millpond_operator_leader 1\n")
        assert (await _get(port, "/")).startswith("HTTP/1.1 404")
    finally:
        await health.stop()


async def _get(port: int, path: str) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
    answer = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    return answer
