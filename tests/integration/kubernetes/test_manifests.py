"""What is shipped in deploy/: manifests that the API server takes, a chart that Helm renders, rights that suffice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml

from millpond.jobs.clusters.kubernetes.kinds import INFERENCES, JOB_KINDS, RESERVATIONS, TOPOLOGIES
from millpond.jobs.clusters.kubernetes.settings import read_settings
from millpond.jobs.frameworks import FRAMEWORKS
from tests.integration.kubernetes.api_server import CRDS, DEPLOY, KUBERNETES_VERSION, Object, make_node
from tests.integration.kubernetes.conftest import Room
from tests.integration.kubernetes.objects import kubedl_job, millpond_job

MANIFESTS = sorted([*DEPLOY.glob("crds/*.yaml"), *DEPLOY.glob("operator/*.yaml")])


def _load(text: str) -> list[Object]:
    return [body for body in yaml.safe_load_all(text) if body]


def _render(**values: Any) -> list[Object]:
    rendered = helm_python.Chart.load(DEPLOY / "chart").render(values, name="millpond", namespace="millpond-system")
    return [body for text in rendered.values() for body in _load(text)]


def _by_name(bodies: list[Object]) -> dict[tuple[str, str], Object]:
    return {(body["kind"], body["metadata"]["name"]): body for body in bodies}


@pytest.mark.parametrize("path", MANIFESTS, ids=[path.stem for path in MANIFESTS])
def test_manifest_is_valid(path: Path) -> None:
    for body in _load(path.read_text()):
        kubernetes_validate.validate(body, KUBERNETES_VERSION, strict=True)


def test_kustomization_lists_every_manifest() -> None:
    listed = yaml.safe_load((DEPLOY / "kustomization.yaml").read_text())["resources"]
    assert sorted(listed) == sorted(str(path.relative_to(DEPLOY)) for path in MANIFESTS)


def test_chart_renders_what_the_plain_manifests_say() -> None:
    plain = _by_name([body for path in DEPLOY.glob("operator/*.yaml") for body in _load(path.read_text())])
    del plain["Namespace", "millpond-system"]
    chart = _by_name(_render())
    assert set(chart) == set(plain)
    pod = chart["Deployment", "millpond-operator"]["spec"]["template"]
    assert len(pod["metadata"].pop("annotations")["jobs.millpond.io/settings"]) == 64  # new settings start new pods
    for kind in ("Deployment", "DaemonSet"):
        body = next(body for (found, _), body in chart.items() if found == kind)
        assert body["spec"]["template"]["spec"]["containers"][0].pop("imagePullPolicy") == "IfNotPresent"
    settings = [found["ConfigMap", "millpond-operator"].pop("data")["operator.yaml"] for found in (chart, plain)]
    assert yaml.safe_load(settings[0]) == yaml.safe_load(settings[1])
    assert chart == plain


def test_chart_with_other_values_is_valid() -> None:
    more = _render(
        replicas=3, nodeSelector={"a": "b"}, tolerations=[{"operator": "Exists"}], imagePullSecrets=[{"name": "s"}],
        agent={"runtimeClassName": "nvidia", "nodeSelector": {"gpu": "yes"}}, settings={"gangScheduler": "volcano"},
    )  # fmt: skip
    for body in more:
        kubernetes_validate.validate(body, KUBERNETES_VERSION, strict=True)
    found = _by_name(more)
    assert found["Deployment", "millpond-operator"]["spec"]["replicas"] == 3
    assert found["DaemonSet", "millpond-agent"]["spec"]["template"]["spec"]["runtimeClassName"] == "nvidia"
    few = _by_name(_render(rbac=False, agent={"enabled": False}))
    assert set(few) == {("Deployment", "millpond-operator"), ("ConfigMap", "millpond-operator")}


def test_chart_refuses_a_value_it_does_not_know() -> None:
    chart = helm_python.Chart.load(DEPLOY / "chart")
    with pytest.raises(helm_python.HelmError, match="replica"):
        chart.validate_schema({"replica": 3})


def test_shipped_settings_are_read(tmp_path: Path) -> None:
    (body,) = _load((DEPLOY / "operator" / "settings.yaml").read_text())
    path = tmp_path / "operator.yaml"
    path.write_text(body["data"]["operator.yaml"])
    settings = read_settings(path)
    assert (settings.gang_scheduler, settings.reserved_cpus, settings.reserved_bytes) == ("", 1.0, 1 << 30)


def test_every_kind_the_operator_knows_is_defined() -> None:
    for kind in (*JOB_KINDS, INFERENCES, RESERVATIONS, TOPOLOGIES):
        crd = CRDS[f"{kind.plural}.{kind.api_version.partition('/')[0]}"]["spec"]
        assert crd["names"]["kind"] == kind.kind
        assert crd["scope"] == ("Namespaced" if kind.is_namespaced else "Cluster")
    for framework in FRAMEWORKS.values():
        if framework.has_kind:
            group = framework.api_version.partition("/")[0]
            crd = CRDS[f"{framework.kind.lower()}s.{group}"]["spec"]["versions"][0]
            spec = crd["schema"]["openAPIV3Schema"]["properties"]["spec"]
            assert (framework.replica_specs or "template") in spec["properties"]


async def test_rights_cover_every_request_of_the_operator(room: Room) -> None:
    bodies = _by_name(_load((DEPLOY / "operator" / "rbac.yaml").read_text()))
    rules = bodies["ClusterRole", "millpond-operator"]["rules"]
    await room.server.put(make_node("n1", cpus=16))
    await room.start()
    room.run_pods()
    await room.server.put(kubedl_job("MPIJob", "m", {"Launcher": 1, "Worker": 1}, cleanPodPolicy="All",
                                     ttlSecondsAfterFinished=0))  # fmt: skip
    await room.server.put(millpond_job("s", roles={"worker": {"image": "i", "run": "r"}}))
    await room.server.put(millpond_job("bad", roles={}))
    container = {"name": "main", "image": "i", "command": ["x"]}
    shares = [{"name": name, "template": {"spec": {"containers": [container]}}} for name in ("a", "b")]
    await room.server.put({
        "apiVersion": "serving.kubedl.io/v1alpha1", "kind": "Inference",
        "metadata": {"name": "inf", "namespace": "default"}, "spec": {"framework": "Triton", "predictors": shares},
    })  # fmt: skip
    await room.until(lambda: room.server.find("httproutes", "inf"))
    fewer = {"predictors": [shares[0] | {"replicas": 2, "autoScale": {"maxReplicas": 3}}]}
    await room.server.change("inferences", "inf", {"spec": fewer})
    await room.until(lambda: room.server.find("horizontalpodautoscalers", "inf-a"))
    await room.phase_is("mpijobs", "m", "Running")
    await room.server.set_pod("m-launcher-0", "Succeeded", 0)
    await room.until(lambda: room.server.find("mpijobs", "m") is None and not room.server.find("reservations", "m"))
    await room.phase_is("millpondjobs", "s", "Running")
    await room.phase_is("millpondjobs", "bad", "Failed")
    asked = {_right_of(request) for request in room.server if request.resource is not None}
    assert len(asked) > 20
    missing = [
        (group, resource, verb)
        for group, resource, verb in sorted(asked)
        if not any(group in rule["apiGroups"] and resource in rule["resources"] and verb in rule["verbs"]
                   for rule in rules)
    ]  # fmt: skip
    assert missing == []


def _right_of(request: Any) -> tuple[str, str, str]:
    """API group, resource with subresource, and verb, as RBAC names them."""
    verb = {"post": "create", "put": "update", "patch": "patch", "delete": "delete"}.get(request.method.value.lower())
    if verb is None:
        verb = "get" if request.name else "watch" if request.params.get("watch") else "list"
    resource = request.resource.plural + (f"/{request.subresource}" if request.subresource else "")
    return request.resource.group, resource, verb
