"""Reads a pod template: what a replica runs, and what a cluster without containers leaves aside.

Every field of Kubernetes' PodSpec and Container is known, so that a typo is an error; those that have no effect on our
clusters are kept as notes. Called by `kubedl`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from millpond.api.job import Resources, RestartPolicy
from millpond.jobs.frameworks.base import Framework
from millpond.jobs.quantities import read_resources
from millpond.jobs.spec_document import Reader
from millpond.jobs.spec_parts import check_variable, read_texts

_METADATA = ("annotations", "labels", "name", "namespace", "creationTimestamp", "generateName")
_POD_USED = ("containers", "nodeSelector", "restartPolicy")
_POD_OTHER = (
    "activeDeadlineSeconds", "affinity", "automountServiceAccountToken", "dnsConfig", "dnsPolicy",
    "enableServiceLinks", "ephemeralContainers", "hostAliases", "hostIPC", "hostNetwork", "hostPID", "hostUsers",
    "hostname", "imagePullSecrets", "initContainers", "nodeName", "os", "overhead", "preemptionPolicy", "priority",
    "priorityClassName", "readinessGates", "resourceClaims", "resources", "runtimeClassName", "schedulerName",
    "schedulingGates", "securityContext", "serviceAccount", "serviceAccountName", "setHostnameAsFQDN",
    "shareProcessNamespace", "subdomain", "terminationGracePeriodSeconds", "tolerations", "topologySpreadConstraints",
    "volumes",
)  # fmt: skip
_CONTAINER_USED = ("args", "command", "env", "image", "name", "ports", "resources", "workingDir")
_CONTAINER_OTHER = (
    "envFrom", "imagePullPolicy", "lifecycle", "livenessProbe", "readinessProbe", "resizePolicy", "restartPolicy",
    "securityContext", "startupProbe", "stdin", "stdinOnce", "terminationMessagePath", "terminationMessagePolicy",
    "tty", "volumeDevices", "volumeMounts",
)  # fmt: skip
_PORT = ("containerPort", "hostIP", "hostPort", "name", "protocol")


@dataclass(frozen=True, slots=True)
class Pod:
    """What a template says."""

    command: tuple[str, ...]
    env: dict[str, str]
    working_dir: str
    image: str
    resources: Resources
    port: int | None
    restart: RestartPolicy | None
    node_selector: dict[str, str]
    notes: tuple[str, ...]


def read_pod(template: Reader, framework: Framework) -> Pod:
    """Reads a replica's template; its main container is the framework's, or the only one."""
    template.check_fields(("metadata", "spec"))
    metadata = template.find("metadata")
    if metadata is not None:
        metadata.check_fields(_METADATA)
    spec = template.need("spec").check_fields((*_POD_USED, *_POD_OTHER))
    container = _main_container(spec.need("containers"), framework)
    restart = spec.find("restartPolicy")
    unused = [f"{spec.path}.{name}" for name in _POD_OTHER if spec.has(name)]
    unused += [f"{container.path}.{name}" for name in _CONTAINER_OTHER if container.has(name)]
    texts = {name: container.find(name) for name in ("workingDir", "image")}
    return Pod(
        command=_words(container.find("command")) + _words(container.find("args")),
        env=_read_env(container.find("env")),
        working_dir=texts["workingDir"].text() if texts["workingDir"] else "",
        image=texts["image"].text() if texts["image"] else "",
        resources=read_resources(container.find("resources")),
        port=_read_port(container.find("ports"), framework),
        restart=None if restart is None else restart.member(RestartPolicy),
        node_selector=read_texts(spec.find("nodeSelector")),
        notes=tuple(f"{path} has no effect on a local cluster." for path in unused),
    )


def check_template(template: Reader) -> dict[str, Any]:
    """A pod template, looked at as far as we take it apart and put it together; the API server looks at the rest.

    Raises:
        SpecError: Something has not the form it must have.
    """
    template.check_fields(("metadata", "spec"))
    metadata, spec = template.find("metadata"), template.find("spec")
    if metadata is not None:
        metadata.entries()
        for name in ("labels", "annotations"):
            read_texts(metadata.find(name))
    if spec is not None:
        spec.entries()
        read_texts(spec.find("nodeSelector"))
        for name in ("volumes", "tolerations", "imagePullSecrets"):
            _mappings(spec.find(name))
        for name in ("serviceAccountName", "schedulerName", "priorityClassName"):
            _text(spec.find(name))
        for name in ("containers", "initContainers"):
            for container in _mappings(spec.find(name)):
                _check_container(container)
    assert isinstance(template.value, dict), "its fields were looked at"
    return dict(template.value)


def _check_container(container: Reader) -> None:
    for name in ("name", "image", "workingDir"):
        _text(container.find(name))
    for name in ("command", "args"):
        _words(container.find(name))
    for item in _mappings(container.find("env")):
        item.need("name").text()
    for item in _mappings(container.find("ports")):
        item.need("containerPort").integer(1, 65535)
        _text(item.find("name"))
    for name in ("volumeMounts", "envFrom"):
        _mappings(container.find(name))
    resources = container.find("resources")
    if resources is not None:
        resources.entries()
        for name in ("requests", "limits"):
            read_texts(resources.find(name))


def _mappings(reader: Reader | None) -> list[Reader]:
    items = [] if reader is None else reader.items()
    for item in items:
        item.entries()
    return items


def _text(reader: Reader | None) -> None:
    if reader is not None:
        reader.text(allow_empty=True)


def _main_container(containers: Reader, framework: Framework) -> Reader:
    found = [item.check_fields((*_CONTAINER_USED, *_CONTAINER_OTHER)) for item in containers.items()]
    if not found:
        raise containers.fail("there is no container.", f"Add one called '{framework.container}'.")
    names = [item.need("name").text() for item in found]
    if framework.container in names:
        return found[names.index(framework.container)]
    if len(found) == 1:
        return found[0]
    raise containers.fail(
        f"none of the containers {', '.join(names)[:200]} is called '{framework.container}'.",
        "Give the main container that name.",
    )


def _words(reader: Reader | None) -> tuple[str, ...]:
    return () if reader is None else tuple(item.text(allow_empty=True) for item in reader.items())


def _read_env(reader: Reader | None) -> dict[str, str]:
    values: dict[str, str] = {}
    for item in [] if reader is None else reader.items():
        item.check_fields(("name", "value", "valueFrom"))
        name = check_variable(item.need("name").text(), item.child("name"))
        if item.has("valueFrom"):
            raise item.child("valueFrom").fail("is not supported here.", "Write the value itself.")
        value = item.find("value")
        values[name] = "" if value is None else value.scalar()
    return values


def _read_port(reader: Reader | None, framework: Framework) -> int | None:
    ports = [] if reader is None else [item.check_fields(_PORT) for item in reader.items()]
    numbers = [item.need("containerPort").integer(1, 65535) for item in ports]
    names = [item.child("name").text() if item.has("name") else "" for item in ports]
    own = f"{framework.kind.lower()}-port"
    return numbers[names.index(own)] if own in names else numbers[0] if numbers else None
