"""Loads jobs from YAML: our short form and KubeDL's, told apart by `apiVersion`.

    name: mnist
    framework: pytorch
    run: python train.py
    roles:
      master: {devices: 1}
      worker: {replicas: 2, devices: 1, memory: 4GiB}

Nothing is created here, and nothing is returned when any document is wrong.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from millpond.api.job import (
    CleanPolicy,
    JobSpec,
    ModelVersionSpec,
    Resources,
    RestartPolicy,
    RoleSpec,
    SpotSpec,
    StartAfter,
    StartPhase,
    SuccessPolicy,
)
from millpond.base.suggest import did_you_mean
from millpond.jobs.frameworks import FRAMEWORKS, Framework, find_framework
from millpond.jobs.kubedl import read_kubedl
from millpond.jobs.quantities import MAX_CPUS, read_devices, read_duration, read_memory, read_quantity
from millpond.jobs.spec_document import Reader, read_documents
from millpond.jobs.spec_parts import (
    check_variable,
    complete,
    normal_role,
    read_code,
    read_cron,
    read_name,
    read_option,
    read_tensorboard,
    read_texts,
)

_ROLE_DEFAULTS = ("run", "env", "working_dir", "image")
_FIELDS = (
    "name", "framework", "namespace", "tenant", "priority", "priority_class", "preemptible", "success", "clean_up",
    "ttl", "deadline", "backoff_limit", "min_available", "run_estimate", "aggregate", "cron", "code", "tensorboard",
    "model_version", "labels", "annotations", "options", "roles", *_ROLE_DEFAULTS,
)  # fmt: skip
_ROLE_FIELDS = (
    "replicas", "devices", "device_type", "cpus", "memory", "restart", "min_replicas", "max_replicas", "after", "port",
    "spot", "node_selector", *_ROLE_DEFAULTS,
)  # fmt: skip
_CRON_NAMES = {name: name for name in ("schedule", "concurrency", "suspend", "deadline", "history_limit")}
_CODE_NAMES = {
    "source": "git",
    "branch": "branch",
    "revision": "revision",
    "root_path": "root_path",
    "dest": "dest",
    "depth": "depth",
    "max_failures": "max_failures",
}


def load_jobs(text: str) -> list[JobSpec]:
    """Loads every job of a YAML text.

    Raises:
        SpecError: Something is wrong; `param` is the path of the field.
    """
    jobs = [_load(document) for document in read_documents(text)]
    seen: set[tuple[str, str]] = set()
    for job in jobs:
        if (job.namespace, job.name) in seen:
            raise Reader(None, "name").fail(f"two documents are called '{job.name}'.", "Rename one.")
        seen.add((job.namespace, job.name))
    return jobs


def _load(document: Reader) -> JobSpec:
    names = [key for key, _ in document.entries()]
    if "apiVersion" in names or "kind" in names:
        return read_kubedl(document)
    return read_short(document)


def read_short(document: Reader) -> JobSpec:
    """Reads one document of our short form."""
    document.check_fields(_FIELDS)
    framework = _read_framework(document.find("framework"))
    namespace = document.find("namespace")
    name = read_name(document.need("name"))
    place = "default" if namespace is None else read_name(namespace)
    roles, at = _read_roles(document, framework)
    code, board, model = document.find("code"), document.find("tensorboard"), document.find("model_version")
    cron = document.find("cron")
    job = JobSpec(
        name=name,
        framework=framework.name,
        roles=roles,
        namespace=place,
        labels=read_texts(document.find("labels")),
        annotations=read_texts(document.find("annotations")),
        options=_read_options(document.find("options"), framework),
        cron=None if cron is None else read_cron(cron, _CRON_NAMES),
        code=None if code is None else read_code(code.check_fields(_CODE_NAMES.values()), _CODE_NAMES),
        tensorboard=None if board is None else _read_board(board),
        model_version=None if model is None else _read_model(model),
    )
    job = dataclasses.replace(job, **_read_policy(document, framework, place))
    return complete(job, framework, at)


def _read_framework(reader: Reader | None) -> Framework:
    if reader is None:
        return FRAMEWORKS["plain"]
    framework = find_framework(reader.text())
    if framework is None:
        raise reader.fail(f"there is no framework '{reader.text()[:60]}'.", did_you_mean(reader.text(), FRAMEWORKS))
    return framework


def _read_policy(document: Reader, framework: Framework, namespace: str) -> dict[str, Any]:
    values: dict[str, Any] = {
        "tenant": namespace,
        "clean_policy": framework.clean_policy,
        "ttl_s": framework.ttl_s,
        "backoff_limit": framework.backoff_limit,
    }
    reads: dict[str, tuple[str, Callable[[Reader], Any]]] = {
        "tenant": ("tenant", Reader.text),
        "priority": ("priority", lambda reader: reader.integer(-(1 << 31))),
        "priority_class": ("priority_class", Reader.text),
        "preemptible": ("preemptible", Reader.flag),
        "aggregate": ("aggregate", Reader.flag),
        "success": ("success_policy", lambda reader: reader.member(SuccessPolicy)),
        "clean_up": ("clean_policy", lambda reader: reader.member(CleanPolicy)),
        "ttl": ("ttl_s", read_duration),
        "deadline": ("active_deadline_s", read_duration),
        "backoff_limit": ("backoff_limit", lambda reader: reader.integer(0)),
        "min_available": ("min_available", lambda reader: reader.integer(1)),
        "run_estimate": ("run_estimate_s", read_duration),
    }
    for name, (target, read) in reads.items():
        found = document.find(name)
        if found is not None:
            values[target] = read(found)
    return values


def _read_roles(document: Reader, framework: Framework) -> tuple[tuple[RoleSpec, ...], dict[str, Reader]]:
    """The roles; a job without `roles` has one replica of the framework's last role."""
    shared = {name: document.find(name) for name in _ROLE_DEFAULTS}
    roles = document.find("roles")
    if roles is None:
        only = framework.chiefs[0] if framework.chiefs else framework.roles[0].name
        role = _read_role(only, Reader({}, "roles"), shared, framework)
        return (role,), {"": document, "roles": document, only: document.child("run")}
    found: dict[str, RoleSpec] = {}
    at = {"": document, "roles": roles}
    for key, entry in roles.entries():
        name = normal_role(key, entry, framework)
        if name in found:
            raise entry.fail(f"the role {name} is there twice, in other letters.", "Keep one.")
        fields = Reader({}, entry.path) if entry.value is None else entry.check_fields(_ROLE_FIELDS)
        found[name] = _read_role(name, fields, shared, framework)
        at[name] = entry
    return tuple(found.values()), at


def _read_role(name: str, entry: Reader, shared: dict[str, Reader | None], framework: Framework) -> RoleSpec:
    def find(key: str) -> Reader | None:
        return entry.find(key) or shared.get(key)

    replicas, restart, minimum = entry.find("replicas"), entry.find("restart"), entry.find("min_replicas")
    maximum = entry.find("max_replicas")
    port, spot, image, directory = entry.find("port"), entry.find("spot"), find("image"), find("working_dir")
    return RoleSpec(
        name=name,
        replicas=1 if replicas is None else replicas.integer(0, 100_000),
        command=read_command(find("run")),
        env=read_env(shared["env"]) | read_env(entry.find("env")),
        working_dir="" if directory is None else directory.text(),
        image="" if image is None else image.text(),
        resources=read_role_resources(entry),
        restart=None if restart is None else restart.member(RestartPolicy),
        min_replicas=None if minimum is None else minimum.integer(1),
        max_replicas=None if maximum is None else maximum.integer(1),
        after=_read_after(entry.find("after"), framework),
        port=None if port is None else port.integer(1, 65535),
        spot=None if spot is None else _read_spot(spot),
        node_selector=read_texts(entry.find("node_selector")),
    )


def read_command(reader: Reader | None) -> tuple[str, ...]:
    """A list is a program and its arguments; a text is a line for the shell."""
    if reader is None:
        return ()
    if isinstance(reader.value, list):
        return tuple(item.scalar() for item in reader.items())
    return ("/bin/sh", "-c", reader.text())


def read_env(reader: Reader | None) -> dict[str, str]:
    """Variables of a process."""
    if reader is None:
        return {}
    return {check_variable(name, value): value.scalar() for name, value in reader.entries()}


def read_role_resources(entry: Reader) -> Resources:
    """What one replica needs: devices, device_type, cpus, memory."""
    devices, kind = entry.find("devices"), entry.find("device_type")
    cpus, memory = entry.find("cpus"), entry.find("memory")
    return Resources(
        devices=0 if devices is None else read_devices(devices),
        device_type=None if kind is None else kind.text(),
        cpus=1.0 if cpus is None else read_quantity(cpus, MAX_CPUS),
        memory_bytes=0 if memory is None else read_memory(memory),
    )


def _read_after(reader: Reader | None, framework: Framework) -> tuple[StartAfter, ...] | None:
    """Edges: a role's name, a list of names, or a mapping of name to phase."""
    if reader is None:
        return None
    if isinstance(reader.value, str):
        return (StartAfter(normal_role(reader.value, reader, framework)),)
    if isinstance(reader.value, list):
        return tuple(StartAfter(normal_role(item.text(), item, framework)) for item in reader.items())
    return tuple(
        StartAfter(normal_role(key, entry, framework), entry.member(StartPhase)) for key, entry in reader.entries()
    )


def _read_spot(reader: Reader) -> SpotSpec:
    if isinstance(reader.value, int):
        return SpotSpec(reader.integer(0, 100_000))
    reader.check_fields(("replicas", "priority_class", "labels"))
    priority = reader.find("priority_class")
    return SpotSpec(
        replicas=reader.need("replicas").integer(0, 100_000),
        priority_class="" if priority is None else priority.text(),
        labels=read_texts(reader.find("labels")),
    )


def _read_options(reader: Reader | None, framework: Framework) -> dict[str, int | str]:
    """Options by KubeDL's name in snake case: slots_per_worker is slotsPerWorker."""
    if reader is None:
        return {}
    snake = {"".join(f"_{c.lower()}" if c.isupper() else c for c in name): name for name in framework.options}
    reader.check_fields(snake)
    return {snake[key]: read_option(entry, framework.options[snake[key]]) for key, entry in reader.entries()}


def _read_board(reader: Reader) -> Any:
    return read_tensorboard(reader.check_fields(("log_dir", "ttl", "image")), {"log_dir": "log_dir", "ttl": "ttl"})


def _read_model(reader: Reader) -> ModelVersionSpec:
    reader.check_fields(("name", "path", "created_by"))
    by = reader.find("created_by")
    return ModelVersionSpec(reader.need("name").text(), reader.need("path").text(), "", "" if by is None else by.text())
