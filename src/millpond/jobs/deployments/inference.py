"""Reads KubeDL's Inference (serving.kubedl.io/v1alpha1): predictors become versions, traffic their weights.

What of a predictor's pod template is a replica's (command, image, resources) becomes its role, the rest stays a pod
template. Pure. Called by `spec` and by the operator.
"""

from __future__ import annotations

import copy
from typing import Any

from millpond.api.deployment import (
    AutoscaleSpec,
    DeploymentSpec,
    GatewaySpec,
    ProbeSpec,
    TemplateSpec,
    VersionSpec,
)
from millpond.api.job import RestartPolicy, RoleSpec
from millpond.jobs.frameworks import FRAMEWORKS
from millpond.jobs.kubedl import INFERENCE
from millpond.jobs.kubedl_pod import check_template, read_pod
from millpond.jobs.spec_document import Reader
from millpond.jobs.spec_parts import read_name, read_texts

MODELS_DIR = "/kubedl-model"
MODEL_VERSION = "kubedl.io/model-version"  # the annotation of a version's pods that says which model they serve
_MAX_NAMES = 60  # of deployment and version together: they name a service
_PORTS = {"TFServing": (8080, 9000), "Triton": (8000, 8001)}
_METADATA = ("annotations", "creationTimestamp", "generateName", "labels", "name", "namespace")
_PREDICTOR = ("name", "modelVersion", "modelPath", "replicas", "trafficWeight", "trafficPercent", "template",
              "autoScale", "batching")  # fmt: skip
_OF_THE_ROLE = ("args", "command", "image", "name", "workingDir")
_QUEUE = 4.0  # waiting requests a replica: KubeDL names an autoscaler and no target


def is_inference(document: Reader) -> bool:
    """Whether a document is an Inference, or wants to be one."""
    return document.has("kind") and document.child("kind").value == "Inference"


def read_inference(document: Reader) -> DeploymentSpec:
    """Reads one Inference."""
    version = document.need("apiVersion")
    if version.text() != INFERENCE:
        raise version.fail(f"'{version.text()[:60]}' is not known for Inference.", f"Write {INFERENCE}.")
    document.check_fields(("apiVersion", "kind", "metadata", "spec", "status"))
    metadata = document.need("metadata").check_fields(_METADATA)
    name, place = read_name(metadata.need("name")), metadata.find("namespace")
    spec = document.need("spec").check_fields(("framework", "predictors"))
    framework = spec.need("framework").one_of(list(_PORTS))
    predictors = spec.need("predictors").items()
    if not predictors:
        raise spec.child("predictors").fail("there is no predictor.", "Add one with a name and a template.")
    weights = _weights(predictors)
    versions: list[VersionSpec] = []
    notes: list[str] = []
    for predictor, weight in zip(predictors, weights, strict=True):
        predictor.check_fields(_PREDICTOR)
        own = read_name(predictor.need("name"))
        if own in [found.name for found in versions]:
            raise predictor.child("name").fail(f"two predictors are called '{own}'.", "Rename one.")
        if len(name) + len(own) > _MAX_NAMES:
            raise predictor.child("name").fail(f"is longer than {_MAX_NAMES} characters with '{name}'.")
        versions.append(_read_predictor(predictor, own, weight, framework))
        if predictor.has("batching"):
            predictor.child("batching").check_fields(("batchSize", "timeoutSeconds"))
            notes.append(f"{predictor.path}.batching is the server's own to do.")
    namespace = "default" if place is None else read_name(place)
    return DeploymentSpec(
        name=name,
        versions=tuple(versions),
        namespace=namespace,
        tenant=namespace,
        kind="triton" if framework == "Triton" else "tensorflow",
        gateway=GatewaySpec(port=_PORTS[framework][0]),
        labels=read_texts(metadata.find("labels")),
        notes=tuple(notes),
    )


def _weights(predictors: list[Reader]) -> list[int]:
    """Shares in percent; those that say nothing divide what is left."""
    given = []
    for predictor in predictors:
        found = predictor.find("trafficWeight") or predictor.find("trafficPercent")
        given.append(None if found is None else found.integer(0, 100))
    silent = given.count(None)
    left = max(0, 100 - sum(weight or 0 for weight in given)) // silent if silent else 0
    weights = [left if weight is None else weight for weight in given]
    if not any(weights):
        raise predictors[0].child("trafficWeight").fail("no predictor would get requests.", "Give one of them 100.")
    return weights


def _read_predictor(reader: Reader, name: str, weight: int, framework: str) -> VersionSpec:
    serving = FRAMEWORKS["serving"]
    template = reader.need("template")
    check_template(template)
    pod = read_pod(_readable(template), serving)
    rest, ports = _rest(template)
    model, path = reader.find("modelVersion"), reader.find("modelPath")
    version = "" if model is None else model.text()
    where = path.text() if path is not None else f"{MODELS_DIR}/{version}" if version else ""
    env = {"KUBEDL_MODEL_PATH": where} if where else {}
    if framework == "TFServing":
        env |= {"MODEL_BASE_PATH": where or MODELS_DIR} | ({"MODEL_NAME": version} if version else {})
    if version:
        notes = rest.setdefault("metadata", {}).setdefault("annotations", {})
        notes[MODEL_VERSION] = version
    http, grpc = _PORTS[framework]
    replicas, scale = reader.find("replicas"), reader.find("autoScale")
    rule = None if scale is None else _read_scale(scale)
    # Arguments alone are for the image's own command.
    has_command = bool(template.child("spec").child("containers").items()[0].child("command").value)
    role = RoleSpec(
        name=serving.roles[0].name,
        command=pod.command if has_command else (),
        env=env | pod.env,
        working_dir=pod.working_dir,
        image=pod.image,
        resources=pod.resources,
        restart=RestartPolicy.NEVER,
        after=(),
        port=ports.pop("http", http),
        node_selector=pod.node_selector,
    )
    return VersionSpec(
        name=name,
        template=TemplateSpec(role, ProbeSpec(), ports={"grpc": grpc} | ports, pod=rest),
        replicas=(1 if rule is None else rule.low) if replicas is None else replicas.integer(0, 1000),
        weight=weight,
        autoscale=rule,
    )


def _read_scale(reader: Reader) -> AutoscaleSpec:
    reader.check_fields(("minReplicas", "maxReplicas", "autoScaler"))
    low = reader.child("minReplicas").integer(1, 1000) if reader.has("minReplicas") else 1
    return AutoscaleSpec(low=low, high=reader.need("maxReplicas").integer(low, 1000), targets={"queue": _QUEUE})


def _readable(template: Reader) -> Reader:
    """The template with its first container alone, without what only pods may say."""
    value: Any = copy.deepcopy(template.value)
    spec: Any = value.get("spec") if isinstance(value, dict) else None
    containers: Any = spec.get("containers") if isinstance(spec, dict) else None
    if isinstance(containers, list) and containers and isinstance(containers[0], dict):
        first = containers[0]
        if isinstance(first.get("env"), list):
            first["env"] = [item for item in first["env"] if not (isinstance(item, dict) and item.get("valueFrom"))]
        spec["containers"] = [first]
    return Reader(value, template.path)


def _rest(template: Reader) -> tuple[dict[str, Any], dict[str, int]]:
    """What of a template that was read is not in the role, and the ports that have a name."""
    value: Any = copy.deepcopy(template.value)
    metadata = value.get("metadata") or {}
    spec = {key: field for key, field in value["spec"].items() if key != "nodeSelector"}
    own, *others = spec["containers"]
    named = {str(port["name"]): int(port["containerPort"]) for port in own.get("ports") or () if port.get("name")}
    taken = _OF_THE_ROLE if own.get("command") else [key for key in _OF_THE_ROLE if key != "args"]
    kept = {key: field for key, field in own.items() if key not in taken}
    kept["env"] = [item for item in own.get("env") or () if item.get("valueFrom")]
    kept["ports"] = [port for port in own.get("ports") or () if not port.get("name")]
    kept = {key: field for key, field in kept.items() if field}
    spec["containers"] = [*([kept] if kept else []), *others]
    spec = {key: field for key, field in spec.items() if field and key != "restartPolicy"}
    about = {key: metadata[key] for key in ("labels", "annotations") if metadata.get(key)}
    return {key: field for key, field in (("metadata", about), ("spec", spec)) if field}, named


def mount_model(pod: dict[str, Any], version: dict[str, Any], path: str) -> dict[str, Any]:
    """A pod template with a ModelVersion's model at a path: its image's files, its volume, or its directory."""
    image = (version.get("status") or {}).get("image")
    storage = (version.get("spec") or {}).get("storage") or {}
    made = copy.deepcopy(pod)
    spec = made.setdefault("spec", {})
    source: dict[str, Any]
    if image:
        source = {"emptyDir": {}}
        loader = {"name": "kubedl-model-loader", "image": image, "volumeMounts": [
            {"name": "kubedl-model", "mountPath": "/mnt/kubedl-model"}],
            "command": ["/bin/sh", "-c", f"cp -r {MODELS_DIR}/* /mnt/kubedl-model"]}  # fmt: skip
        spec["initContainers"] = [*(spec.get("initContainers") or []), loader]
    elif storage.get("nfs"):
        source = {"nfs": {key: storage["nfs"][key] for key in ("server", "path") if key in storage["nfs"]}}
    elif storage.get("localStorage"):
        source = {"hostPath": {"path": storage["localStorage"]["path"]}}
    else:
        return made
    spec["volumes"] = [*(spec.get("volumes") or []), {"name": "kubedl-model"} | source]
    containers = spec.setdefault("containers", [])
    own = next((one for one in containers if "name" not in one), None)
    if own is None:
        own = {}
        containers.insert(0, own)
    own["volumeMounts"] = [*(own.get("volumeMounts") or []), {"name": "kubedl-model", "mountPath": path}]
    return made
