"""Rendered objects, checked against Kubernetes' own schemas."""

from __future__ import annotations

from typing import Any

import kubernetes_validate
import pytest
import yaml

from millpond.api.job import SpecError
from millpond.cli.main import main
from millpond.jobs.deployments.kubernetes.render import render
from millpond.jobs.deployments.servers import GAUGES
from millpond.jobs.deployments.spec import load_deployments

TEXT = """
name: chat
port: 80
model: smollm2-135m
image: millpond:latest
devices: 1
memory: 4Gi
node_selector: {zone: a}
labels: {team: x}
rollout: {max_surge: 25%, max_unavailable: 0, drain: 45s}
versions:
  v1: {weight: 90, replicas: 3}
  v2: {weight: 10, autoscale: {min: 1, max: 4, queue: 4, kv: 0.8}}
"""


def objects(text: str = TEXT) -> dict[tuple[str, str], Any]:
    (spec,) = load_deployments(text)
    return {(body["kind"], body["metadata"]["name"]): body for body in render(spec)}


def test_every_object_is_one_that_kubernetes_takes() -> None:
    found = objects()
    assert set(found) == {
        ("Deployment", "chat-v1"), ("Deployment", "chat-v2"), ("Service", "chat-v1"), ("Service", "chat-v2"),
        ("Service", "chat"), ("HorizontalPodAutoscaler", "chat-v2"), ("HTTPRoute", "chat"),
    }  # fmt: skip
    for (kind, _), body in found.items():
        if kind != "HTTPRoute":  # not a kind of Kubernetes' own
            kubernetes_validate.validate(body, "1.36", strict=True)


def test_services_reach_the_pods_they_mean() -> None:
    found = objects()
    pods = {name: body["spec"]["template"]["metadata"]["labels"] for (kind, name), body in found.items()
            if kind == "Deployment"}  # fmt: skip
    for service, meant in (("chat", {"chat-v1", "chat-v2"}), ("chat-v1", {"chat-v1"}), ("chat-v2", {"chat-v2"})):
        selector = found["Service", service]["spec"]["selector"]
        assert {name for name, labels in pods.items() if selector.items() <= labels.items()} == meant
    refs = found["HTTPRoute", "chat"]["spec"]["rules"][0]["backendRefs"]
    assert [(ref["name"], ref["weight"]) for ref in refs] == [("chat-v1", 90), ("chat-v2", 10)]


def test_an_autoscaled_version_leaves_its_number_to_the_autoscaler() -> None:
    found = objects()
    assert found["Deployment", "chat-v1"]["spec"]["replicas"] == 3
    assert "replicas" not in found["Deployment", "chat-v2"]["spec"]
    metrics = found["HorizontalPodAutoscaler", "chat-v2"]["spec"]["metrics"]
    asked = {metric["pods"]["metric"]["name"]: metric["pods"]["target"]["averageValue"] for metric in metrics}
    assert asked == {GAUGES["queue"]: "4", GAUGES["kv"]: "800m"}


def test_a_pod_has_what_a_replica_has() -> None:
    pod = objects()["Deployment", "chat-v1"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"] == {
        "requests": {"cpu": "1", "memory": str(4 << 30)}, "limits": {"nvidia.com/gpu": "1"},
    }  # fmt: skip
    env = {item["name"]: item["value"] for item in container["env"]}
    assert env == {"MODEL": "smollm2-135m", "PORT": "8000", "MILLPOND_SERVE_HOST": "0.0.0.0"}  # probes ask from outside
    assert container["readinessProbe"]["httpGet"]["path"] == "/ready"
    assert pod["terminationGracePeriodSeconds"] == 60


def test_a_pod_template_stands_beside_what_we_make() -> None:
    text = """
    name: web
    image: web:1
    container_port: 9000
    ports: {grpc: 9001}
    env: {A: 1}
    versions:
      v1:
        template:
          metadata: {annotations: {a: b}}
          spec:
            tolerations: [{operator: Exists}]
            volumes: [{name: data, emptyDir: {}}]
            containers:
            - volumeMounts: [{name: data, mountPath: /data}]
              readinessProbe: {exec: {command: [ok]}}
              env: [{name: KEY, valueFrom: {secretKeyRef: {name: s, key: k}}}, {name: A, value: "2"}]
              ports: [{name: admin, containerPort: 9002}]
            - {name: side, image: side:1}
    """
    found = objects(text)
    for (_, _), body in found.items():
        kubernetes_validate.validate(body, "1.36", strict=True)
    template = found["Deployment", "web-v1"]["spec"]["template"]
    assert template["metadata"]["annotations"] == {"a": "b"}
    assert template["spec"]["tolerations"] == [{"operator": "Exists"}]
    own, side = template["spec"]["containers"]
    assert side == {"name": "side", "image": "side:1"}
    assert "command" not in own  # the image's own
    assert own["volumeMounts"] == [{"name": "data", "mountPath": "/data"}]
    assert own["readinessProbe"] == {"exec": {"command": ["ok"]}}
    assert "startupProbe" not in own
    assert [(item["name"], item.get("value")) for item in own["env"]] == [("A", "1"), ("PORT", "9000"), ("KEY", None)]
    assert [item["containerPort"] for item in own["ports"]] == [9000, 9001, 9002]
    ports = {item["name"]: item["targetPort"] for item in found["Service", "web"]["spec"]["ports"]}
    assert ports == {"http": "http", "grpc": "grpc"}


def test_a_version_with_all_the_weight_has_the_service_to_itself() -> None:
    found = objects("{name: a, run: x, image: i, versions: {v1: {weight: 0}, v2: {}, v3: {weight: 0}}}")
    assert found["Service", "a"]["spec"]["selector"]["millpond.io/version"] == "v2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{name: a, run: x}", "image: is missing"),
        ("{name: a, run: x, image: i, autoscale: {max: 2, requests: 3}}", "only our own gateway"),
        ("{name: a, run: x, image: i, autoscale: {min: 0, max: 2, queue: 3}}", "0 needs our own gateway"),
    ],
)
def test_what_a_cluster_cannot_do_is_said(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        objects(text)


def test_the_command_prints_them(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "chat.yaml").write_text(TEXT)
    assert main(["deploy", "render", str(tmp_path / "chat.yaml")]) == 0
    assert [body["kind"] for body in yaml.safe_load_all(capsys.readouterr().out)].count("Deployment") == 2
