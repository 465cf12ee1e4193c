"""`millpond deploy` and `millpond arena serve` against an API server; pods come as its Deployments ask."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from millpond.api.deployment import VersionSpec
from millpond.cli.main import main
from millpond.jobs.clusters.kubernetes.client import KubernetesApi
from millpond.jobs.deployments.kubernetes.client import KubernetesDeployments
from tests.integration.kubernetes.conftest import Room
from tests.integration.kubernetes.deployer import keep

Run = Callable[..., Awaitable[str]]
CHAT = """
name: chat
model: smollm2-135m
image: millpond:1
memory: 1Gi
versions:
  v1: {weight: 90, replicas: 2}
  v2: {weight: 10, autoscale: {min: 1, max: 4, queue: 4}}
"""


@pytest.fixture
def run(room: Room, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    path = tmp_path / "kubeconfig"
    document = {
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": room.url}}], "users": [],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": ""}}],
    }  # fmt: skip
    path.write_text(yaml.safe_dump(document))

    async def run_command(group: str, *arguments: str, code: int = 0) -> str:
        flag = "--kubeconfig" if group == "deploy" else "--config"
        capfd.readouterr()
        found = await asyncio.to_thread(main, [group, flag, str(path), *arguments])
        said = capfd.readouterr()
        assert found == code, said
        return said.err if code else said.out

    return run_command


@pytest.mark.usefixtures("pods")
async def test_a_deployment_from_creation_to_deletion(room: Room, run: Run) -> None:
    flags = ("--image=millpond:1", "--replicas=2", "--ready=/ready")
    said = await run("deploy", "create", "web", *flags, "--wait", "--timeout=60", "--", "serve $PORT")
    assert "web is ready at http://web.default.svc:8000" in said
    line = (await run("deploy", "list")).splitlines()[1].split()
    assert line[:4] == ["web", "Ready", "2/2", "v1"]
    assert "There is a deployment 'web'" in await run("deploy", "create", "web", *flags, "--", "x", code=1)
    first = {pod["metadata"]["name"] for pod in room.server.all("pods")}
    await run("deploy", "update", "web", "-e", "A=1", "--wait", "--timeout=60")
    (deployment,) = room.server.all("deployments")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert {"name": "A", "value": "1"} in container["env"]
    assert not first & {pod["metadata"]["name"] for pod in room.server.all("pods")}
    await run("deploy", "scale", "web", "3", "--wait", "--timeout=60")
    document = json.loads(await run("deploy", "get", "web", "-o", "json"))
    assert [replica["revision"] for replica in document["status"]["replicas"]] == [2, 2, 2]
    assert {replica["node"] for replica in document["status"]["replicas"]} == {"n1"}
    assert document["spec"]["versions"]["v1"]["replicas"] == 3
    history = (await run("deploy", "history", "web")).splitlines()
    assert [line.split()[1] for line in history[1:]] == ["1", "2*"]
    assert "back to revision 1" in await run("deploy", "rollback", "web", "--wait", "--timeout=60")
    (deployment,) = room.server.all("deployments")
    assert "A" not in [item["name"] for item in deployment["spec"]["template"]["spec"]["containers"][0]["env"]]
    pod = next(iter(room.pods()))
    room.server["get", f"/api/v1/namespaces/default/pods/{pod}/log"] << b"hello\n"
    assert await run("deploy", "logs", "web", "-i", pod) == "hello\n"
    assert "has no gateway" in await run("deploy", "logs", "web", "--gateway", code=1)
    assert "web was deleted." in await run("deploy", "delete", "web")
    assert not [room.server.all(plural) for plural in ("deployments", "services", "configmaps", "pods")
                if room.server.all(plural)]  # fmt: skip
    assert "There is no deployment 'web'" in await run("deploy", "get", "web", code=1)


@pytest.mark.usefixtures("pods")
async def test_versions_shares_and_an_autoscaler(room: Room, run: Run, tmp_path: Path) -> None:
    (tmp_path / "chat.yaml").write_text(CHAT)
    await run("deploy", "apply", str(tmp_path / "chat.yaml"), "--wait", "--timeout=60")
    route = room.server.find("httproutes", "chat")
    assert route is not None
    assert [ref["weight"] for ref in route["spec"]["rules"][0]["backendRefs"]] == [90, 10]
    assert "v1 50 %, v2 50 %" in await run("deploy", "split", "chat", "v1=5", "v2=5")
    route = room.server.find("httproutes", "chat")
    assert route is not None
    assert [ref["weight"] for ref in route["spec"]["rules"][0]["backendRefs"]] == [5, 5]
    await room.server.change("deployments", "chat-v2", {"spec": {"replicas": 3}})  # the autoscaler's doing
    await run("deploy", "update", "chat", "-V", "v2", "-e", "A=1", "--wait", "--timeout=60")
    found = room.server.find("deployments", "chat-v2")
    assert found is not None
    assert found["spec"]["replicas"] == 3
    await run("deploy", "scale", "chat", "2", "-V", "v2", "--wait", "--timeout=60")
    found = room.server.find("deployments", "chat-v2")
    assert found is not None
    assert found["spec"]["replicas"] == 2
    assert "unchanged" not in await run("deploy", "apply", str(tmp_path / "chat.yaml"))
    assert "unchanged" in await run("deploy", "apply", str(tmp_path / "chat.yaml"))
    await run("deploy", "delete", "chat", "-V", "v2")
    assert [body["metadata"]["name"] for body in room.server.all("deployments")] == ["chat-v1"]
    assert not room.server.all("horizontalpodautoscalers")
    assert not room.server.all("httproutes")
    assert {body["metadata"]["name"] for body in room.server.all("services")} == {"chat", "chat-v1"}


async def test_what_the_server_refuses_creates_nothing(room: Room, run: Run, tmp_path: Path) -> None:
    text = "{name: web, run: x, image: i, template: {spec: {volumes: [{nam: a}]}}}"
    (tmp_path / "web.yaml").write_text(text)
    said = await run("deploy", "apply", str(tmp_path / "web.yaml"), code=1)
    assert "Deployment web-v1: spec.template.spec.volumes.0" in said
    assert not room.server.all("configmaps")
    assert not room.server.all("services")
    (tmp_path / "web.yaml").write_text("{name: web, run: x}")
    assert "versions.v1.image: is missing" in await run("deploy", "apply", str(tmp_path / "web.yaml"), code=1)


async def test_a_change_the_server_refuses_leaves_everything_as_it_was(room: Room, run: Run) -> None:
    await run("deploy", "create", "web", "--image=i", "--", "x")
    before = (room.server.all("configmaps"), room.server.all("deployments"))
    room.server["post", "/apis/apps/v1/namespaces/default/deployments"] << 422 << {"message": "no such thing"}
    assert "no such thing" in await run("deploy", "update", "web", "-e", "A=1", code=1)
    assert (room.server.all("configmaps"), room.server.all("deployments")) == before


async def test_changes_at_the_same_time_are_all_made(room: Room, run: Run) -> None:
    await run("deploy", "create", "web", "--image=i", "--", "x")
    await asyncio.gather(*(asyncio.to_thread(set_variable, room, f"V{number}") for number in range(4)))
    (deployment,) = room.server.all("deployments")
    names = {item["name"] for item in deployment["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert names >= {f"V{number}" for number in range(4)}


def set_variable(room: Room, name: str) -> None:
    async def connect() -> KubernetesApi:
        return KubernetesApi.at(room.url, first_wait_s=0.01)

    def edit(version: VersionSpec) -> VersionSpec:
        role = version.template.role
        template = replace(version.template, role=replace(role, env={**role.env, name: "1"}))
        return replace(version, template=template)

    client = KubernetesDeployments(connect)
    client.update_version("web", "v1", edit)
    client.close()


async def test_a_command_that_broke_off_is_finished_by_the_next(room: Room, run: Run, tmp_path: Path) -> None:
    (tmp_path / "chat.yaml").write_text(CHAT)
    server = room.server
    path = "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers"
    server["post", path][1:2] << 403 << {"message": "not you"}  # the first is the dry run
    assert "not you" in await run("deploy", "apply", str(tmp_path / "chat.yaml"), code=1)
    assert server.find("deployments", "chat-v2") is not None
    assert not server.all("horizontalpodautoscalers")
    assert "run the command again" in await run("deploy", "get", "chat")
    await run("deploy", "apply", str(tmp_path / "chat.yaml"))
    assert server.find("horizontalpodautoscalers", "chat-v2") is not None
    assert server.find("httproutes", "chat") is not None
    assert "run the command again" not in await run("deploy", "get", "chat")


async def test_what_somebody_else_made_is_left_alone(room: Room, run: Run) -> None:
    mine = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"},
            "spec": {"selector": {"a": "b"}, "ports": [{"port": 1}]}}  # fmt: skip
    await room.server.put(mine)
    said = await run("deploy", "create", "web", "--image=i", "--", "x", code=1)
    assert "Service web is there already and is not of this deployment" in said
    await run("deploy", "delete", "web")
    (service,) = room.server.all("services")
    assert service["spec"] == mine["spec"]


async def test_what_has_the_same_name_label_is_none_of_ours(room: Room, run: Run) -> None:
    labels = {"app.kubernetes.io/name": "web"}
    metadata = {"name": "theirs", "namespace": "default", "labels": labels}
    spec = {"selector": labels, "ports": [{"port": 1}]}
    await room.server.put({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})
    await run("deploy", "create", "web", "--image=i", "--", "x")
    own = room.server.find("services", "web")
    assert own is not None
    assert own["spec"]["selector"] == {**labels, "app.kubernetes.io/managed-by": "millpond"}
    assert "web was deleted." in await run("deploy", "delete", "web")
    assert [body["metadata"]["name"] for body in room.server.all("services")] == ["theirs"]


async def test_without_routes_one_version_still_gets_all(room: Room, run: Run, tmp_path: Path) -> None:
    room.server.lacks.add("gateway.networking.k8s.io")
    (tmp_path / "chat.yaml").write_text(CHAT)
    await run("deploy", "apply", str(tmp_path / "chat.yaml"))
    assert "share requests by their replicas" in await run("deploy", "get", "chat")
    await run("deploy", "split", "chat", "v1=0", "v2=1")
    service = room.server.find("services", "chat")
    assert service is not None
    assert service["spec"]["selector"]["millpond.io/version"] == "v2"
    assert "share requests" not in await run("deploy", "get", "chat")


async def test_pods_that_cannot_start_say_why(room: Room, run: Run) -> None:
    await run("deploy", "create", "web", "--image=i", "--replicas=1", "--", "x")
    await keep(room.server, room.server.all("deployments")[0])
    (pod,) = room.server.all("pods")
    waiting = {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no image i"}}, "name": "server",
               "ready": False, "restartCount": 0, "image": "i", "imageID": ""}  # fmt: skip
    await room.server.change("pods", pod["metadata"]["name"], {"status": {"containerStatuses": [waiting]}})
    said = await run("deploy", "rollout", "web", code=1)
    assert "web: Failing. " in said
    assert "ImagePullBackOff: no image i" in said


@pytest.mark.usefixtures("pods")
async def test_arenas_serving_lines(room: Room, run: Run) -> None:
    line = ("--namespace=default-group", "--version=1", "--data=bloom7b1-pvc:/mnt", "--name=ft-triton-bloom",
            "--allow-metrics", "--gpus=2", "--replicas=1", "--image=triton_with_ft:22.03",
            "--model-repository=/mnt/triton_repo")  # fmt: skip
    assert "The Job ft-triton-bloom has been submitted" in await run("arena", "serve", "triton", *line)
    body = room.server.find("deployments", "ft-triton-bloom-1", "default-group")
    assert body is not None
    pod = body["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"][-1] == (
        'exec tritonserver --model-repository=/mnt/triton_repo --http-address 0.0.0.0 --http-port "$PORT" '
        "--grpc-port 8001 --metrics-port 8002"
    )
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "2"}
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "bloom7b1-pvc"}
    assert container["volumeMounts"][0]["mountPath"] == "/mnt"
    service = room.server.find("services", "ft-triton-bloom", "default-group")
    assert service is not None
    assert {item["name"]: item["port"] for item in service["spec"]["ports"]} == {
        "http": 8000, "grpc": 8001, "metrics": 8002,
    }  # fmt: skip
    await room.until(lambda: (room.server.find("deployments", "ft-triton-bloom-1", "default-group") or {}).get(
        "status", {}).get("readyReplicas"))  # fmt: skip
    lines = (await run("arena", "serve", "list", "-n", "default-group")).splitlines()
    assert lines[0].split() == ["NAME", "TYPE", "VERSION", "DESIRED", "AVAILABLE", "ADDRESS", "PORTS", "GPU"]
    assert lines[1].split()[:5] == ["ft-triton-bloom", "Triton", "1", "1", "1"]
    assert lines[1].split()[-1] == "2"
    assert "ft-triton-bloom-1-1" in await run("arena", "serve", "get", "ft-triton-bloom", "-n", "default-group")
    update = ("update", "triton", "--name=ft-triton-bloom", "-n", "default-group", "-e", "A=1")
    await run("arena", "serve", *update)
    body = room.server.find("deployments", "ft-triton-bloom-1", "default-group")
    assert body is not None
    assert body["spec"]["template"]["spec"]["volumes"] == pod["volumes"]
    assert "has been deleted" in await run("arena", "serve", "delete", "ft-triton-bloom", "-n", "default-group")
    assert not room.server.all("deployments")


async def test_an_image_of_ones_own_is_served_by_its_own_command(room: Room, run: Run) -> None:
    flags = ("--name=web", "--version=v1", "--image=web:1", "--restful-port=9000", "--toleration=all")
    await run("arena", "serve", "custom", *flags)
    (deployment,) = room.server.all("deployments")
    pod = deployment["spec"]["template"]["spec"]
    assert "command" not in pod["containers"][0]
    assert pod["tolerations"] == [{"operator": "Exists"}]
    assert pod["containers"][0]["ports"] == [{"name": "http", "containerPort": 9000}]
    service = room.server.find("services", "web")
    assert service is not None
    assert service["spec"]["ports"][0]["port"] == 9000
