"""The objects of a deployment on the API server: created, exchanged where they differ, removed when nobody wants them.

An object remembers what it was made of (`MARK`), so that it is touched only when that changed, and belongs to an owner
that takes it along when it goes. Knows no wishes. Called by `client` and by the operator.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from millpond.api.deployment import DeploymentSpec
from millpond.api.job import SpecError
from millpond.jobs.clusters.kubernetes.client import ApiError, KubernetesApi
from millpond.jobs.clusters.kubernetes.kinds import (
    AUTOSCALERS,
    DEPLOYMENTS,
    ROUTES,
    SERVICES,
    Object,
    ResourceKind,
)
from millpond.jobs.deployments.kubernetes.render import MANAGED, NAME_LABEL, render

MARK = "millpond.io/made-of"
_ASKED = "millpond.io/replicas"  # how many were asked for when it was written; an autoscaler changes the number itself
KINDS = (DEPLOYMENTS, SERVICES, AUTOSCALERS, ROUTES)
_BY_NAME = {kind.kind: kind for kind in KINDS}
_REFUSALS = (400, 403, 422)
_TRIES = 8


def wanted_objects(spec: DeploymentSpec, device_resource: str, revisions: Mapping[str, int] | None) -> list[Object]:
    """The objects of a deployment, each with what it is made of."""
    asked = {f"{spec.name}-{version.name}": version.replicas for version in spec.versions}
    return [
        _marked(body, asked[body["metadata"]["name"]] if body["kind"] == DEPLOYMENTS.kind else None)
        for body in render(spec, device_resource, revisions)
    ]


def _marked(body: Object, replicas: int | None) -> Object:
    """The object with what it is made of. `replicas`: how many were asked for, of a Deployment."""
    made = copy.deepcopy(body)
    text = json.dumps([body, replicas], sort_keys=True)
    notes = made["metadata"].setdefault("annotations", {})
    notes[MARK] = hashlib.sha256(text.encode()).hexdigest()[:16]
    if replicas is not None:
        notes[_ASKED] = str(replicas)
    return made


def is_as_made(wanted: Sequence[Object], found: Sequence[Object]) -> bool:
    """Whether the cluster has every object as it was made last."""
    marks = {_key(body): _notes(body).get(MARK) for body in found}
    return all(marks.get(_key(body)) == _notes(body)[MARK] for body in wanted)


@dataclass(frozen=True, slots=True)
class Found:
    """What a cluster has. `has_routes`: whether it knows the Gateway API's routes."""

    objects: list[Object]
    has_routes: bool = True

    def known(self, bodies: Sequence[Object]) -> list[Object]:
        """Those of a kind that the cluster knows."""
        return [body for body in bodies if self.has_routes or body["kind"] != ROUTES.kind]


async def read_objects(api: KubernetesApi, namespace: str, name: str = "") -> Found:
    """What a cluster has of one deployment, or of all in a namespace (none: in all)."""
    selector = f"{NAME_LABEL}={name},{MANAGED}" if name else MANAGED  # the name's label is everybody's
    listed = await asyncio.gather(*(_list(api, kind, namespace, selector) for kind in KINDS))
    return Found([body for bodies in listed for body in bodies or ()], listed[KINDS.index(ROUTES)] is not None)


async def try_objects(api: KubernetesApi, wanted: Sequence[Object]) -> None:
    """Asks whether the API server would take every object that is not there yet; nothing is created.

    Raises:
        SpecError: It would not take one.
        ApiError: It could not say.
    """
    for body in wanted:
        kind = _BY_NAME[body["kind"]]
        try:
            await api.create(kind, body, dry_run=True)
        except ApiError as error:
            if error.status in _REFUSALS:
                raise SpecError(f"{body['kind']} {body['metadata']['name']}: {error.said}", param="template") from None
            if error.status != 409:  # it is there, and will be exchanged
                raise


async def put_objects(api: KubernetesApi, wanted: Sequence[Object], owner: Object, found: Sequence[Object]) -> None:
    """Makes the cluster have these objects and, of those the owner has, no others.

    Raises:
        ApiError: The API server refuses one, or somebody else has an object of that name.
    """
    by_key = {_key(body): body for body in found}
    for body in wanted:
        await _put(api, body | {"metadata": body["metadata"] | {"ownerReferences": [owner]}}, by_key.get(_key(body)))
    kept = {_key(body) for body in wanted}
    for body in found:
        if _key(body) not in kept and _is_owned(body, owner):
            metadata = body["metadata"]
            await api.delete(_BY_NAME[body["kind"]], metadata["namespace"], metadata["name"], uid=metadata["uid"])


async def _put(api: KubernetesApi, body: Object, known: Object | None) -> None:
    kind, metadata = _BY_NAME[body["kind"]], body["metadata"]
    for _ in range(_TRIES):
        if known is None:
            try:
                await api.create(kind, _with_number(body, None))
                return
            except ApiError as error:
                if error.status != 409:
                    raise
                known = await api.get(kind, metadata["namespace"], metadata["name"])
                continue
        if not _is_owned(known, metadata["ownerReferences"][0]):
            problem = f"{kind.kind} {metadata['name']} is there already and is not of this deployment"
            raise ApiError(409, "AlreadyExists", problem)
        if _notes(known).get(MARK) == _notes(body)[MARK]:
            return
        try:
            await api.replace(kind, _over(known, _with_number(body, known)))
            return
        except ApiError as error:
            if error.status not in (404, 409):
                raise
            known = await api.get(kind, metadata["namespace"], metadata["name"])
    raise ApiError(409, "Conflict", f"{kind.kind} {metadata['name']} is changed by somebody all the time")


def _with_number(body: Object, known: Object | None) -> Object:
    """An autoscaler's number stays as it is, unless another one was asked for."""
    asked = _notes(body).get(_ASKED)
    if asked is None or "replicas" in body["spec"]:
        return body
    stays = known is not None and _notes(known).get(_ASKED) == asked
    number = known["spec"].get("replicas", int(asked)) if known is not None and stays else int(asked)
    return body | {"spec": body["spec"] | {"replicas": number}}


def _over(known: Object, body: Object) -> Object:
    """The object that is there, with what was made now: what the server has decided by itself stays."""
    metadata = known["metadata"] | {
        "labels": (known["metadata"].get("labels") or {}) | body["metadata"]["labels"],
        "annotations": _notes(known) | _notes(body),
        "ownerReferences": body["metadata"]["ownerReferences"],
    }
    return {**known, "metadata": metadata, "spec": (known.get("spec") or {}) | body["spec"]}


def _is_owned(body: Object, owner: Object) -> bool:
    return any(one.get("uid") == owner["uid"] for one in body["metadata"].get("ownerReferences") or ())


def _key(body: Object) -> tuple[str, str, str]:
    return body["kind"], body["metadata"].get("namespace", ""), body["metadata"]["name"]


def _notes(body: Object) -> dict[str, str]:
    notes: dict[str, str] = body["metadata"].get("annotations") or {}
    return notes


async def _list(api: KubernetesApi, kind: ResourceKind, namespace: str, selector: str) -> list[Object] | None:
    try:
        return (await api.list(kind, namespace, selector))[0]
    except ApiError as error:
        if error.status == 404 and kind is ROUTES:
            return None
        raise
