"""From what a user wrote to an object for the API server, and the change that gives one of its roles another size.

KubeDL's YAML goes through as it is; our short form becomes a MillpondJob, or a Cron around one when it has a schedule.
Pure. Called by `jobs_client`.
"""

from __future__ import annotations

from millpond.api.job import SpecError
from millpond.jobs.clusters.kubernetes.documents import workload_of
from millpond.jobs.clusters.kubernetes.kinds import CRONS, JOB_KINDS, MILLPOND_JOBS, Object, find_job_kind
from millpond.jobs.frameworks import FRAMEWORKS
from millpond.jobs.spec_document import Reader, Value

_IN_METADATA = ("name", "namespace", "labels", "annotations")
_CRON_FIELDS = {"schedule": "schedule", "concurrency": "concurrencyPolicy", "suspend": "suspend",
                "deadline": "deadline", "history_limit": "historyLimit"}  # fmt: skip


def make_object(document: Reader, namespace: str) -> Object:
    """The object of one document; it goes into `namespace` unless it says where.

    Raises:
        SpecError: It is of a kind that the operator does not know.
    """
    value = document.value
    if not isinstance(value, dict):
        raise document.fail("must be a mapping.")
    if "apiVersion" not in value and "kind" not in value:
        return _make_ours(document, value, namespace)
    body: Object = dict(value)
    metadata = document.need("metadata")
    metadata.need("name").text()
    if not isinstance(metadata.value, dict):
        raise metadata.fail("must be a mapping.")
    body["metadata"] = {"namespace": namespace, **metadata.value}
    if find_job_kind(body) is None:
        kinds = ", ".join(kind.kind for kind in JOB_KINDS)
        raise document.need("kind").fail("the operator knows no such kind.", f"Known are {kinds}.")
    return body


def _make_ours(document: Reader, value: dict[str, Value], namespace: str) -> Object:
    document.need("name").text()
    metadata: Object = {"namespace": namespace, **{key: value[key] for key in _IN_METADATA if key in value}}
    spec: Object = {key: field for key, field in value.items() if key not in (*_IN_METADATA, "cron")}
    ours = {"apiVersion": MILLPOND_JOBS.api_version, "kind": MILLPOND_JOBS.kind}
    if value.get("cron") is None:
        return ours | {"metadata": metadata, "spec": spec}
    cron = document.child("cron").check_fields(_CRON_FIELDS)
    given = {_CRON_FIELDS[name]: entry.value for name, entry in cron.entries()}
    inside = {key: metadata[key] for key in ("labels", "annotations") if key in metadata}
    template = ours | {"workload": {"metadata": inside, "spec": spec} if inside else {"spec": spec}}
    metadata = {key: field for key, field in metadata.items() if key not in inside}
    spec = given | {"template": template}
    return {"apiVersion": CRONS.api_version, "kind": CRONS.kind, "metadata": metadata, "spec": spec}


def resized(body: Object, framework: str, role: str, replicas: int) -> Object:
    """The change of an object's spec that gives a role so many replicas, to be merged into it."""
    is_ours = find_job_kind(body) == MILLPOND_JOBS
    if not is_ours and not FRAMEWORKS[framework].replica_specs:
        raise SpecError(f"A {body['kind']} has one replica.", fix="Submit another one.", param="replicas")
    field = "roles" if is_ours else FRAMEWORKS[framework].replica_specs
    roles = workload_of(body).get("spec", {}).get(field) or {}
    key = next((key for key in roles if key.casefold() == role.casefold()), role.lower() if is_ours else role)
    return {"spec": {field: {key: {"replicas": replicas}}}}
