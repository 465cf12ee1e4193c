"""From an object of the API server to a `JobSpec`: KubeDL's kinds, its Cron, and our MillpondJob.

Owns what differs from reading a user's file: the API server has added fields of its own; containers may start with
their image's own command and take variables from secrets; names become those of services. Pure. Called by the operator.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from millpond.api.job import JobSpec, SpecError, StartPhase
from millpond.jobs.clusters.kubernetes.kinds import CRONS, MILLPOND_JOBS, Object, find_job_kind
from millpond.jobs.frameworks import FRAMEWORKS, Framework
from millpond.jobs.kubedl import CRON_NAMES, read_kubedl
from millpond.jobs.kubedl_pod import check_template
from millpond.jobs.spec import read_short
from millpond.jobs.spec_document import Reader
from millpond.jobs.spec_parts import read_cron

_METADATA = ("annotations", "creationTimestamp", "generateName", "labels", "name", "namespace")
_LOCAL_NOTE = "has no effect on a local cluster."
_OWN_COMMAND = "the image's own command"
_SERVICE = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class JobObject:
    """A job as the API server has it.

    Attributes:
        body: The object.
        spec: What it asks for.
    """

    body: Object
    spec: JobSpec

    @property
    def namespace(self) -> str:
        """Where it is."""
        return self.spec.namespace

    @property
    def framework(self) -> Framework:
        """The table of its framework."""
        return FRAMEWORKS[self.spec.framework]

    def template(self, role: str) -> Object:
        """The pod template that the user wrote for a role; empty when the form has none."""
        roles = _roles_of(workload_of(self.body), self.framework)
        found = next((entry for key, entry in roles.items() if key.casefold() == role.casefold()), None) or {}
        return copy.deepcopy(found.get("template") or {})

    @property
    def shared_template(self) -> Object:
        """What the pods of a MillpondJob have beside what we make of its roles."""
        is_ours = workload_of(self.body).get("kind") == MILLPOND_JOBS.kind
        return copy.deepcopy(workload_of(self.body)["spec"].get("template") or {}) if is_ours else {}


def workload_of(body: Object) -> Object:
    """The job that an object describes: itself, or what a Cron runs. Empty where a Cron describes none."""
    if body.get("kind") != CRONS.kind:
        return body
    spec = body.get("spec")
    template = spec.get("template") if isinstance(spec, dict) else None
    if not isinstance(template, dict):
        return {}
    inner = template.get("workload") or template
    named = {"apiVersion": template.get("apiVersion"), "kind": template.get("kind")}
    return named | inner if isinstance(inner, dict) else {}


def read_job(body: Object, gang_scheduler: str = "") -> JobObject:
    """Reads an object.

    Args:
        body: As the API server has it.
        gang_scheduler: The scheduler that places pods in our stead, if there is one.

    Raises:
        SpecError: Something is wrong with it; `param` is the path of the field.
    """
    document = _without_server_fields(body)
    kind = find_job_kind(body)
    if kind == MILLPOND_JOBS:
        spec = _read_ours(Reader(document, ""))
    elif kind == CRONS and workload_of(document).get("kind") == MILLPOND_JOBS.kind:
        spec = _read_our_cron(document)
    else:
        _make_readable(workload_of(document))
        spec = read_kubedl(Reader(document, ""))
        _check_templates(body)
    spec = dataclasses.replace(spec, notes=tuple(note for note in spec.notes if not note.endswith(_LOCAL_NOTE)))
    _check_names(spec)
    if gang_scheduler:
        _check_order(spec, gang_scheduler)
    return JobObject(body, spec)


def _without_server_fields(body: Object) -> Object:
    document = copy.deepcopy(body)
    document.pop("status", None)
    metadata = document.get("metadata") or {}
    document["metadata"] = {key: value for key, value in metadata.items() if key in _METADATA}
    annotations = document["metadata"].get("annotations") or {}
    annotations.pop("kubectl.kubernetes.io/last-applied-configuration", None)
    return document


def _read_our_cron(document: Object) -> JobSpec:
    """A Cron around a MillpondJob: KubeDL's schedule, our short form."""
    whole = Reader(document, "").check_fields(("apiVersion", "kind", "metadata", "spec"))
    spec = whole.need("spec").check_fields((*CRON_NAMES.values(), "template"))
    template = spec.need("template").check_fields(("apiVersion", "kind", "workload", "metadata", "spec"))
    place = template.find("workload") or template
    workload = workload_of(document)
    own = {key: document["metadata"][key] for key in ("name", "namespace") if key in document["metadata"]}
    inner = workload.get("metadata") if isinstance(workload.get("metadata"), dict) else {}
    job = _read_ours(Reader(workload | {"metadata": (inner or {}) | own}, place.path))
    if job.cron is not None:
        raise place.child("spec").child("cron").fail("the Cron itself says when.", "Leave it out.")
    schedule = {key: value for key, value in document["spec"].items() if key != "template"}
    return dataclasses.replace(job, cron=read_cron(Reader(schedule, spec.path), CRON_NAMES))


def _read_ours(whole: Reader) -> JobSpec:
    """Our short form, with name and namespace from the metadata."""
    document = whole.check_fields(("apiVersion", "kind", "metadata", "spec")).value
    assert isinstance(document, dict), "its fields were looked at"
    given = whole.need("spec")
    for name in ("name", "namespace"):
        if given.has(name):
            raise given.child(name).fail("belongs into metadata.")
    for name in ("labels", "annotations"):
        if given.has(name):
            raise given.child(name).fail("belongs into metadata.")
    metadata = document["metadata"]
    assert isinstance(metadata, dict), "every object has one"
    taken = {key: metadata[key] for key in ("name", "namespace", "labels", "annotations") if metadata.get(key)}
    fields = given.value if isinstance(given.value, dict) else {}
    if given.has("template"):
        check_template(given.child("template"))
    spec = read_short(Reader({key: fields[key] for key in fields if key != "template"} | taken, given.path))
    for role in spec.roles:
        where = f"{given.path}.roles.{role.name.lower()}"
        if not role.image:
            raise Reader(None, f"{where}.image").fail("is missing.", "Name a container image.")
        if role.working_dir and not role.working_dir.startswith("/"):
            at = Reader(None, f"{where}.working_dir")
            if spec.code is None:
                raise at.fail("must be absolute in a container.", "Write /workspace, for instance.")
    return spec


def _roles_of(workload: Any, framework: Framework) -> Any:
    """A job's roles as its object has them, each with a `template`."""
    spec = workload.get("spec") if isinstance(workload, dict) else None
    if not isinstance(spec, dict):
        return {}
    if framework.replica_specs:
        return spec.get(framework.replica_specs) or {}
    return {framework.roles[0].name: spec} if workload.get("kind") == framework.kind else {}


def _make_readable(workload: Any) -> None:
    """Takes out of the containers what pods may say and processes on a bare machine may not."""
    for framework in FRAMEWORKS.values():
        roles = _roles_of(workload, framework)
        for entry in roles.values() if isinstance(roles, dict) else ():
            template = entry.get("template") if isinstance(entry, dict) else None
            pod = template.get("spec") if isinstance(template, dict) else None
            containers = pod.get("containers") if isinstance(pod, dict) else None
            for container in containers if isinstance(containers, list) else ():
                if isinstance(container, dict):
                    _simplify(container)


def _check_templates(body: Object) -> None:
    """Looks at what passes through: all containers, and what pods have beside them."""
    workload = workload_of(body)
    at = "spec" if workload is body else "spec.template.workload.spec"
    for framework in FRAMEWORKS.values():
        if framework.kind == workload.get("kind"):
            for name, entry in _roles_of(workload, framework).items():
                path = f"{at}.{framework.replica_specs}.{name}" if framework.replica_specs else at
                check_template(Reader(entry["template"], f"{path}.template"))


def _simplify(container: Object) -> None:
    env = container.get("env")
    if isinstance(env, list):
        container["env"] = [item for item in env if not (isinstance(item, dict) and item.get("valueFrom"))]
    if not container.get("command") and not container.get("args"):
        container["command"] = [_OWN_COMMAND]


def _check_names(spec: JobSpec) -> None:
    """Replicas are reached by services of their names, and those are short and begin with a letter."""
    for role in spec.roles:
        last = f"{spec.name}-{role.name.lower()}-{max(0, role.replicas - 1)}"
        if role.replicas and not _SERVICE.fullmatch(last):
            problem = f"'{last}' is not a name for a service."
            fix = "Use at most 63 letters, digits and '-' with role and number, a letter first."
            raise Reader(None, "metadata.name").fail(problem, fix)


def _check_order(spec: JobSpec, gang_scheduler: str) -> None:
    for role in spec.roles:
        for edge in role.after or ():
            if edge.phase is StartPhase.SUCCEEDED and spec.role(edge.role) is not None:
                problem = f"{role.name} starts after {edge.role} has ended, and {gang_scheduler} places all at once."
                raise SpecError(f"spec: {problem}", fix="Make two jobs of it.", param="spec")
