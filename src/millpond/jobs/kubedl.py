"""Reads KubeDL's form: kinds of training.kubedl.io, Notebook, and Cron of apps.kubedl.io/v1alpha1 around them.

A table of fields per place; what a field means is decided where it is read. Knows the frameworks only through their
table. Called by `spec.load_jobs`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from millpond.api.job import (
    CleanPolicy,
    CodeSpec,
    CronSpec,
    JobSpec,
    ModelVersionSpec,
    RestartPolicy,
    RoleSpec,
    SpotSpec,
    SuccessPolicy,
    TensorBoardSpec,
)
from millpond.base.suggest import did_you_mean
from millpond.jobs.frameworks import FRAMEWORKS, Framework
from millpond.jobs.kubedl_pod import read_pod
from millpond.jobs.spec_document import Reader
from millpond.jobs.spec_parts import (
    complete,
    normal_role,
    parse_annotation,
    read_code,
    read_cron,
    read_name,
    read_option,
    read_tensorboard,
    read_texts,
)

TRAINING = "training.kubedl.io/v1alpha1"
CRON = "apps.kubedl.io/v1alpha1"
INFERENCE = "serving.kubedl.io/v1alpha1"
_POLICY = (
    "activeDeadlineSeconds", "backoffLimit", "cleanPodPolicy", "cronPolicy", "schedulingPolicy",
    "ttlSecondsAfterFinished",
)  # fmt: skip
_METADATA = ("annotations", "creationTimestamp", "generateName", "labels", "name", "namespace")
_ROLE = ("replicas", "restartPolicy", "spotReplicaSpec", "template")
_LEGACY_MPI = (
    "gpus", "gpusPerNode", "processingUnits", "processingUnitsPerNode", "processingResourceType", "launcherOnMaster",
    "replicas", "template", "mainContainer",
)  # fmt: skip
CRON_NAMES = {
    "schedule": "schedule",
    "concurrency": "concurrencyPolicy",
    "suspend": "suspend",
    "deadline": "deadline",
    "history_limit": "historyLimit",
}
_CODE_NAMES = {
    "source": "source",
    "branch": "branch",
    "revision": "revision",
    "root_path": "rootPath",
    "dest": "destPath",
    "depth": "depth",
    "max_failures": "maxFailures",
}
_CODE_FIELDS = (*_CODE_NAMES.values(), "image", "envs", "ssh", "sshFile", "user", "password")
GIT_SYNC = "kubedl.io/git-sync-config"
TENSORBOARD = "kubedl.io/tensorboard-config"
TENANCY = "kubedl.io/tenancy"


def read_kubedl(document: Reader) -> JobSpec:
    """Reads one document of KubeDL's form."""
    kind, version = document.need("kind"), document.need("apiVersion")
    if kind.text() == "Cron":
        return _read_cron_object(document, version)
    by_kind = {framework.kind: framework for framework in FRAMEWORKS.values()}
    framework = by_kind.get(kind.text())
    if framework is None:
        raise kind.fail(f"there is no kind '{kind.text()[:60]}'.", did_you_mean(kind.text(), [*by_kind, "Cron"]))
    if version.text() != framework.api_version:
        problem = f"'{version.text()[:60]}' is not known for {framework.kind}."
        raise version.fail(problem, f"Write {framework.api_version}.")
    document.check_fields(("apiVersion", "kind", "metadata", "spec", "status"))
    return _read_job(document, framework) if framework.replica_specs else _read_single(document, framework)


def _read_single(document: Reader, framework: Framework) -> JobSpec:
    """A kind with one pod, whose template stands in the spec itself."""
    metadata = document.need("metadata").check_fields(_METADATA)
    template = document.need("spec").check_fields(("template",)).need("template")
    pod = read_pod(template, framework)
    name, namespace = read_name(metadata.need("name")), metadata.find("namespace")
    place = "default" if namespace is None else read_name(namespace)
    role = RoleSpec(
        name=framework.roles[0].name, command=pod.command, env=pod.env, working_dir=pod.working_dir, image=pod.image,
        resources=pod.resources, restart=pod.restart, port=pod.port, node_selector=pod.node_selector,
    )  # fmt: skip
    job = JobSpec(
        name=name, framework=framework.name, roles=(role,), namespace=place, tenant=place,
        labels=read_texts(metadata.find("labels")), annotations=read_texts(metadata.find("annotations")),
        clean_policy=framework.clean_policy, notes=pod.notes,
    )  # fmt: skip
    return complete(job, framework, {"": template, "roles": template, role.name: template})


def _read_cron_object(document: Reader, version: Reader) -> JobSpec:
    if version.text() != CRON:
        raise version.fail(f"'{version.text()[:60]}' is not known for Cron.", f"Write {CRON}.")
    document.check_fields(("apiVersion", "kind", "metadata", "spec", "status"))
    spec = document.need("spec").check_fields((*CRON_NAMES.values(), "template"))
    template = spec.need("template").check_fields(("apiVersion", "kind", "workload", "metadata", "spec"))
    workload = template.find("workload") or template
    merged = dict(workload.value) if isinstance(workload.value, dict) else {}
    metadata = document.need("metadata").check_fields(_METADATA)
    for name in ("apiVersion", "kind"):
        merged.setdefault(name, template.child(name).value)
    merged.setdefault("metadata", metadata.value)
    job = read_kubedl(Reader(merged, workload.path))
    schedule = {key: value for key, value in (spec.value.items() if isinstance(spec.value, dict) else ())
                if key != "template"}  # fmt: skip
    cron = read_cron(Reader(schedule, spec.path), CRON_NAMES)
    return dataclasses.replace(job, name=read_name(metadata.need("name")), cron=cron)


def _read_job(document: Reader, framework: Framework) -> JobSpec:
    metadata = document.need("metadata").check_fields(_METADATA)
    spec = document.need("spec")
    own = {option.group or name for name, option in framework.options.items()}
    own |= {"successPolicy"} if framework.name == "tf" else set()
    own |= set(_LEGACY_MPI) if framework.name == "mpi" else set()
    own |= {"webHost"} if framework.name == "mars" else set()
    extra = ("modelVersion", "cacheBackend", "runPolicy")
    spec.check_fields((*_POLICY, framework.replica_specs, *extra, *sorted(own)))
    for name in (*_LEGACY_MPI, "cacheBackend"):
        if spec.has(name):
            fix = "Use a dataset's directory." if name == "cacheBackend" else "Write mpiReplicaSpecs."
            raise spec.child(name).fail("is not supported here.", fix)
    roles, at, notes = _read_roles(spec.need(framework.replica_specs), framework)
    namespace = metadata.find("namespace")
    name = read_name(metadata.need("name"))
    annotations = read_texts(metadata.find("annotations"))
    job = JobSpec(
        name=name,
        framework=framework.name,
        roles=roles,
        namespace="default" if namespace is None else read_name(namespace),
        options=_read_options(spec, framework),
        success_policy=spec.child("successPolicy").member(SuccessPolicy)
        if spec.has("successPolicy")
        else SuccessPolicy.DEFAULT,
        labels=read_texts(metadata.find("labels")),
        annotations=annotations,
        code=_read_code_annotation(metadata.child("annotations").find(GIT_SYNC)),
        tensorboard=_read_board_annotation(metadata.child("annotations").find(TENSORBOARD)),
        model_version=_read_model(spec.find("modelVersion")),
        notes=notes,
    )
    job = dataclasses.replace(job, **_read_policy(spec, framework, job.namespace))
    tenancy = metadata.child("annotations").find(TENANCY)
    if tenancy is not None:
        tenant = parse_annotation(tenancy).check_fields(("tenant", "user", "idc", "region")).find("tenant")
        job = dataclasses.replace(job, tenant=tenant.text() if tenant is not None else job.tenant)
    return complete(job, framework, at)


def _read_roles(
    roles: Reader, framework: Framework
) -> tuple[tuple[RoleSpec, ...], dict[str, Reader], tuple[str, ...]]:
    found: dict[str, RoleSpec] = {}
    at = {"": roles, "roles": roles}
    notes: list[str] = []
    for key, entry in roles.entries():
        name = normal_role(key, entry, framework)
        if name in found:
            raise entry.fail(f"the role {name} is there twice, in other letters.", "Keep one.")
        entry.check_fields(_ROLE)
        pod = read_pod(entry.need("template"), framework)
        replicas, restart = entry.find("replicas"), entry.find("restartPolicy")
        found[name] = RoleSpec(
            name=name,
            replicas=1 if replicas is None else replicas.integer(0, 100_000),
            command=pod.command,
            env=pod.env,
            working_dir=pod.working_dir,
            image=pod.image,
            resources=pod.resources,
            restart=pod.restart if restart is None else restart.member(RestartPolicy),
            port=pod.port,
            spot=_read_spot(entry.find("spotReplicaSpec")),
            node_selector=pod.node_selector,
        )
        at[name] = entry
        notes += pod.notes
    return tuple(found.values()), at, tuple(notes)


def _read_spot(reader: Reader | None) -> SpotSpec | None:
    if reader is None:
        return None
    reader.check_fields(("spotReplicaNumber", "priorityClassName", "labels"))
    priority = reader.find("priorityClassName")
    return SpotSpec(
        replicas=reader.need("spotReplicaNumber").integer(0, 100_000),
        priority_class="" if priority is None else priority.text(),
        labels=read_texts(reader.find("labels")),
    )


def _read_policy(spec: Reader, framework: Framework, namespace: str) -> dict[str, Any]:
    """The run policy: inline, or for MPIJob also under `runPolicy`, which wins."""
    places = [spec]
    if spec.has("runPolicy"):
        places.insert(0, spec.child("runPolicy").check_fields(_POLICY))

    def find(name: str) -> Reader | None:
        return next((place.child(name) for place in places if place.has(name)), None)

    clean, ttl, deadline = find("cleanPodPolicy"), find("ttlSecondsAfterFinished"), find("activeDeadlineSeconds")
    backoff, scheduling, cron = find("backoffLimit"), find("schedulingPolicy"), find("cronPolicy")
    values: dict[str, Any] = {
        "clean_policy": framework.clean_policy if clean is None else clean.member(CleanPolicy),
        "ttl_s": framework.ttl_s if ttl is None else float(ttl.integer(0)),
        "active_deadline_s": None if deadline is None else float(deadline.integer(0)),
        "backoff_limit": framework.backoff_limit if backoff is None else backoff.integer(0),
        "cron": _read_cron_policy(cron),
        "tenant": namespace,
    }
    if scheduling is not None:
        scheduling.check_fields(("minAvailable", "priority", "priorityClassName", "queue"))
        minimum, priority = scheduling.find("minAvailable"), scheduling.find("priority")
        name, queue = scheduling.find("priorityClassName"), scheduling.find("queue")
        values["min_available"] = None if minimum is None else minimum.integer(1)
        values["priority"] = 0 if priority is None else priority.integer(-(1 << 31))
        values["priority_class"] = "" if name is None else name.text()
        values["tenant"] = namespace if queue is None else queue.text()
    return values


def _read_cron_policy(reader: Reader | None) -> CronSpec | None:
    return None if reader is None else read_cron(reader, CRON_NAMES)


def _read_options(spec: Reader, framework: Framework) -> dict[str, int | str]:
    values: dict[str, int | str] = {}
    for group in {option.group for option in framework.options.values() if option.group}:
        if spec.has(group):
            spec.child(group).check_fields(
                [name for name, option in framework.options.items() if option.group == group]
            )
    for name, option in framework.options.items():
        place = spec.child(option.group) if option.group else spec
        if place.has(name):
            values[name] = read_option(place.child(name), option)
    return values


def _read_code_annotation(reader: Reader | None) -> CodeSpec | None:
    if reader is None:
        return None
    config = parse_annotation(reader).check_fields(_CODE_FIELDS)
    return read_code(config, _CODE_NAMES)


def _read_board_annotation(reader: Reader | None) -> TensorBoardSpec | None:
    if reader is None:
        return None
    config = parse_annotation(reader)
    config.check_fields(("logDir", "ttlSecondsAfterJobFinished", "image", "ingressSpec", "updateTimestamp"))
    return read_tensorboard(config, {"log_dir": "logDir", "ttl": "ttlSecondsAfterJobFinished"})


def _read_model(reader: Reader | None) -> ModelVersionSpec | None:
    if reader is None:
        return None
    reader.check_fields(("modelName", "createdBy", "storage", "imageRepo", "imageTag", "modelVersionName"))
    storage = reader.need("storage").check_fields(("localStorage", "nfs", "AWSEfs"))
    local = storage.find("localStorage")
    if local is None:
        raise storage.fail("only localStorage works on this cluster.", "Write localStorage: {path: DIRECTORY}.")
    local.check_fields(("path", "nodeName", "mountPath"))
    repo, by = reader.find("imageRepo"), reader.find("createdBy")
    return ModelVersionSpec(
        model_name=reader.need("modelName").text(),
        path=local.need("path").text(),
        image_repo="" if repo is None else repo.text(),
        created_by="" if by is None else by.text(),
    )
