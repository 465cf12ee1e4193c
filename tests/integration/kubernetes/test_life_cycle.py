"""Jobs from their object to their end, on the API server of kmock."""

from __future__ import annotations

from tests.integration.kubernetes.api_server import make_node
from tests.integration.kubernetes.conftest import Room
from tests.integration.kubernetes.objects import kubedl_job


async def test_pytorch_job_runs_succeeds_and_is_cleaned(room: Room) -> None:
    await room.server.put(make_node("n1"))
    await room.start()
    await room.server.put(kubedl_job("PyTorchJob", "mnist", {"Master": 1, "Worker": 2}, cleanPodPolicy="All"))
    await room.until(lambda: set(room.pods()) == {"mnist-master-0"}, "the master comes first")
    await room.server.set_pod("mnist-master-0", "Running")
    await room.until(lambda: len(room.pods()) == 3)
    pods = room.pods()
    assert {pod["spec"]["nodeName"] for pod in pods.values()} == {"n1"}
    env = {item["name"]: item.get("value") for item in pods["mnist-worker-1"]["spec"]["containers"][0]["env"]}
    assert (env["RANK"], env["WORLD_SIZE"]) == ("2", "3")
    assert env["MASTER_ADDR"] == "mnist-master-0.default.svc"
    assert [service["metadata"]["name"] for service in room.server.all("services")] == ["mnist-master-0"]
    for name in ("mnist-worker-0", "mnist-worker-1"):
        await room.server.set_pod(name, "Running")
    await room.phase_is("pytorchjobs", "mnist", "Running")
    room.run_pods()
    await room.server.set_pod("mnist-master-0", "Succeeded", 0)
    await room.phase_is("pytorchjobs", "mnist", "Succeeded")
    await room.until(lambda: not room.pods() and not room.server.all("services"), "everything is gone")
    status = room.server.find("pytorchjobs", "mnist")["status"]
    assert status["replicaStatuses"]["Master"] == {"active": 0, "succeeded": 1, "failed": 0, "evicted": 0}
    assert [one["type"] for one in status["conditions"] if one["status"] == "True"] == ["Created", "Succeeded"]
    assert status["completionTime"]
