"""KubeDL's Inference from its object to its pods, on the API server of kmock."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.kubernetes.conftest import Room

Object = dict[str, Any]


def predictor(name: str, **more: Any) -> Object:
    """A predictor as KubeDL's examples have it."""
    container = {"name": "tensorflow", "image": "tf-serving:1", "args": ["--model_name=mnist"],
                 "env": [{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
                 "resources": {"limits": {"cpu": "2", "nvidia.com/gpu": "1"}}}  # fmt: skip
    template = {"spec": {"containers": [container], "tolerations": [{"operator": "Exists"}]}}
    return {"name": name, "replicas": 1, "template": template} | more


def inference(*predictors: Object, framework: str = "TFServing") -> Object:
    return {
        "apiVersion": "serving.kubedl.io/v1alpha1", "kind": "Inference",
        "metadata": {"name": "mnist", "namespace": "default"},
        "spec": {"framework": framework, "predictors": list(predictors)},
    }  # fmt: skip


def status(room: Room) -> Object:
    found = room.server.find("inferences", "mnist")
    assert found is not None
    said: Object = found.get("status") or {}
    return said


@pytest.mark.usefixtures("pods")
async def test_an_inference_from_its_object_to_its_end(room: Room) -> None:
    await room.start()
    await room.server.put(inference(predictor("a", trafficWeight=90), predictor("b", replicas=2)))
    await room.until(lambda: status(room).get("phase") == "Ready")
    said = status(room)
    assert said["inferenceEndpoint"] == "mnist.default.svc:8080"
    assert said["predictorStatuses"] == [
        {"name": "a", "replicas": 1, "readyReplicas": 1, "trafficPercent": 90, "endpoint": "mnist-a.default.svc:8000"},
        {"name": "b", "replicas": 2, "readyReplicas": 2, "trafficPercent": 10, "endpoint": "mnist-b.default.svc:8000"},
    ]
    deployment = room.server.find("deployments", "mnist-a")
    assert deployment is not None
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["args"] == ["--model_name=mnist"]
    assert "command" not in container  # the image's own
    assert pod["tolerations"] == [{"operator": "Exists"}]
    assert {item["name"] for item in container["env"]} >= {"MODEL_BASE_PATH", "KEY"}
    assert [item["containerPort"] for item in container["ports"]] == [8080, 9000]
    await room.server.change("inferences", "mnist", {"spec": {"predictors": [predictor("b", replicas=3)]}})
    await room.until(lambda: [one["readyReplicas"] for one in status(room)["predictorStatuses"]] == [3])
    assert [body["metadata"]["name"] for body in room.server.all("deployments")] == ["mnist-b"]
    assert not room.server.all("httproutes")
    await room.stop()
    await room.start()  # the next operator finds everything as it is
    await room.settled()
    before = len([one for one in room.server if one.method.value == "PUT"])
    await room.server.remove("inferences", "mnist")
    await room.until(lambda: not room.server.all("deployments") and not room.server.all("pods"))
    assert len([one for one in room.server if one.method.value == "PUT"]) == before


async def test_a_wrong_one_says_where_and_creates_nothing(room: Room) -> None:
    await room.start()
    await room.server.put(inference(predictor("a", replica=1)))
    await room.until(lambda: status(room).get("message"))
    assert "spec.predictors[0].replica: there is no such field. Did you mean 'replicas'?" in status(room)["message"]
    assert status(room)["field"] == "spec.predictors[0].replica"
    assert not room.server.all("deployments")
    await room.server.change("inferences", "mnist", {"spec": {"predictors": [predictor("a")]}})
    await room.until(lambda: room.server.find("deployments", "mnist-a"))
    await room.until(lambda: "field" not in status(room))


@pytest.mark.parametrize(
    ("storage", "volume"),
    [
        ({"nfs": {"server": "n", "path": "/m"}}, {"nfs": {"server": "n", "path": "/m"}}),
        ({"localStorage": {"path": "/data/m", "nodeName": "n1"}}, {"hostPath": {"path": "/data/m"}}),
    ],
)
async def test_the_model_of_a_job_is_served(room: Room, storage: Object, volume: Object) -> None:
    await room.start()
    await room.server.put(inference(predictor("a", modelVersion="mv-mnist-1", modelPath="/models/mnist")))
    await room.until(lambda: status(room).get("message"))
    assert "ModelVersion mv-mnist-1 is not there." in status(room)["message"]
    await room.server.put({
        "apiVersion": "model.kubedl.io/v1alpha1", "kind": "ModelVersion",
        "metadata": {"name": "mv-mnist-1", "namespace": "default"},
        "spec": {"modelName": "mnist", "storage": storage},
    })  # fmt: skip
    deployment = await room.until(lambda: room.server.find("deployments", "mnist-a"))
    pod = deployment["spec"]["template"]["spec"]
    assert pod["volumes"] == [{"name": "kubedl-model"} | volume]
    assert pod["containers"][0]["volumeMounts"] == [{"name": "kubedl-model", "mountPath": "/models/mnist"}]
    env = {item["name"]: item.get("value") for item in pod["containers"][0]["env"]}
    assert (env["KUBEDL_MODEL_PATH"], env["MODEL_NAME"]) == ("/models/mnist", "mnist")
