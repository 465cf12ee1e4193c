"""Deployments of a Kubernetes cluster: the wish in a ConfigMap, and the objects that it makes, which it owns.

A verb edits the wish at the version that was read, as the store of one machine does in a transaction, and then makes
the objects follow. Nothing is written before the API server has said that it would take all of it. Called by the
command line; needs no operator.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from millpond.api.deployment import (
    DeploymentExistsError,
    DeploymentNotFoundError,
    DeploymentSpec,
    DeploymentStatus,
    ServerStatus,
)
from millpond.api.job import JobNotFoundError
from millpond.jobs.clusters.kubernetes.client import ApiError, KubernetesApi
from millpond.jobs.clusters.kubernetes.kinds import CONFIG_MAPS, DEPLOYMENTS, EVENTS, PODS, Object, owner_of
from millpond.jobs.clusters.kubernetes.reports import read_time
from millpond.jobs.clusters.kubernetes.talk import Connect, Talk
from millpond.jobs.deployments import wish as wishes
from millpond.jobs.deployments.kubernetes.objects import (
    Found,
    is_as_made,
    put_objects,
    read_objects,
    try_objects,
    wanted_objects,
)
from millpond.jobs.deployments.kubernetes.render import DEVICES, MANAGED, NAME_LABEL, PORT
from millpond.jobs.deployments.kubernetes.report import read_deployment
from millpond.jobs.deployments.verbs import DeploymentVerbs, Edit
from millpond.jobs.deployments.wish import Wish
from millpond.jobs.store import EventRecord

_HOLDS = {"millpond.io/holds": "deployment"}
_KEY = "wish.json"
_TRIES = 8
_LOOK_EVERY_S = 0.5
_NO_ROUTES = "The cluster has no HTTPRoute: versions share requests by their replicas."


class KubernetesDeployments(DeploymentVerbs):
    """Deployments of one cluster.

    Args:
        connect: Opens a connection; each verb has its own.
        device_resource: What nodes call an accelerator.
    """

    look_every_s = _LOOK_EVERY_S

    def __init__(self, connect: Connect, device_resource: str = DEVICES) -> None:
        self._talk = Talk(connect)
        self._device_resource = device_resource

    def close(self) -> None:
        """Ends everything."""
        self._talk.close()

    def create(self, spec: DeploymentSpec) -> DeploymentStatus:
        """Makes a deployment.

        Raises:
            DeploymentExistsError: There is one of that name.
            SpecError: The API server would not take one of its objects; then nothing is created.
        """
        gateway = replace(spec.gateway, port=spec.gateway.port or PORT)
        wish = wishes.make_wish(replace(spec, gateway=gateway), "", time.time(), "", {})

        async def make(api: KubernetesApi) -> Wish:
            wanted = (await read_objects(api, spec.namespace, spec.name)).known(self._wanted(wish))
            if await api.get(CONFIG_MAPS, spec.namespace, _name(spec.name)) is not None:
                raise _exists(spec)
            await try_objects(api, wanted)
            try:
                held = await api.create(CONFIG_MAPS, _held(wish))
            except ApiError as error:
                raise _exists(spec) if error.status == 409 else error from None
            made = _read(held)
            await put_objects(api, wanted, owner_of(_typed(held)), [])
            return made

        return self._status(self._talk.run(make))

    def deployments(self, namespace: str | None = None) -> list[DeploymentStatus]:
        """Deployments, newest first."""
        found = self._wishes(None, namespace)

        async def look(api: KubernetesApi) -> list[DeploymentStatus]:
            seen = await read_objects(api, namespace or "")
            pods = (await api.list(PODS, namespace or "", MANAGED))[0]
            return [self._told(wish, replace(seen, objects=_of(wish, seen.objects)), _of(wish, pods)) for wish in found]

        return sorted(self._talk.run(look) if found else [], key=lambda status: -status.created_s)

    def events(self, status: DeploymentStatus) -> list[EventRecord]:
        """What the cluster said about a deployment's objects, oldest first."""
        wish = next(iter(self._wishes(status.uid, status.namespace)), None)
        if wish is None:
            raise DeploymentNotFoundError(f"'{status.name}' was deleted.", param="name")

        async def look(api: KubernetesApi) -> list[EventRecord]:
            found, pods = await _look(api, wish)
            names = {(body["kind"], body["metadata"]["name"]) for body in [*found.objects, *pods]}
            items = (await api.list(EVENTS, wish.spec.namespace))[0]
            own = [item for item in items if _is_about(item.get("involvedObject") or {}, names)]
            seen = [
                EventRecord(read_time(item.get("lastTimestamp") or item.get("eventTime")) or 0.0,
                            item.get("type", "Normal"), item.get("reason", ""), item.get("message", ""))
                for item in own
            ]  # fmt: skip
            return sorted(seen, key=lambda event: event.at_s)

        return self._talk.run(look)

    def logs(self, replica: ServerStatus, *, follow: bool = False, tail: int | None = None) -> Iterator[bytes]:
        """What a replica wrote, in pieces."""

        async def place(api: KubernetesApi) -> str:
            found = (await api.list(PODS, "", MANAGED))[0]
            return next((pod["metadata"]["namespace"] for pod in found if pod["metadata"]["uid"] == replica.uid), "")

        namespace = self._talk.run(place)
        if not namespace:
            raise JobNotFoundError(f"There is no pod {replica.name} any more.", param="instance")
        return self._talk.log(namespace, replica.name, follow=follow, tail=tail)

    def gateway_logs(self, name: str, namespace: str | None = None, *, tail: int | None = None) -> Iterator[bytes]:
        """There is none: services of the cluster are in its place.

        Raises:
            DeploymentNotFoundError: Always.
        """
        raise DeploymentNotFoundError(f"'{name}' has no gateway: Kubernetes' own services do its work.", param="name")

    def delete(self, names: Sequence[str], namespace: str | None = None, wait_s: float = 90.0) -> list[bool]:
        """Deletes deployments, and waits until their replicas have finished what they have.

        Returns:
            For each, whether it is gone.

        Raises:
            DeploymentNotFoundError: One of them is not there; then none is deleted.
        """
        found = [self._find(name, namespace) for name in names]

        async def remove(api: KubernetesApi) -> list[bool]:
            for wish in found:
                await api.delete(CONFIG_MAPS, wish.spec.namespace, _name(wish.spec.name), uid=wish.uid)
            deadline = time.monotonic() + wait_s
            while True:
                seen = [await _look(api, wish) for wish in found]
                left = [bool(objects.objects or pods) for objects, pods in seen]
                if not any(left) or time.monotonic() >= deadline:
                    return [not is_left for is_left in left]
                await asyncio.sleep(_LOOK_EVERY_S)

        return self._talk.run(remove)

    def _wishes(self, name: str | None, namespace: str | None) -> list[Wish]:
        async def look(api: KubernetesApi) -> list[Object]:
            selector = ",".join(f"{key}={value}" for key, value in _HOLDS.items())
            return (await api.list(CONFIG_MAPS, namespace or "", selector))[0]

        found = [_read(body) for body in self._talk.run(look)]
        return [wish for wish in found if name in (None, wish.spec.name, wish.uid)]

    def _change(self, wish: Wish, edit: Edit) -> DeploymentStatus:
        place = (wish.spec.namespace, _name(wish.spec.name))

        async def write(api: KubernetesApi) -> Wish:
            for _ in range(_TRIES):
                held = await api.get(CONFIG_MAPS, *place)
                if held is None or held["metadata"]["uid"] != wish.uid:
                    raise DeploymentNotFoundError(f"'{wish.spec.name}' was deleted.", param="name")
                old = _read(held)
                changed = edit(old)
                found = await read_objects(api, place[0], wish.spec.name)
                wanted = found.known(self._wanted(changed))
                if not is_as_made(wanted, found.objects):
                    await try_objects(api, wanted)
                try:
                    if changed != old:
                        held = await api.replace(CONFIG_MAPS, _typed(held) | {"data": {_KEY: _text(changed)}})
                except ApiError as error:
                    if error.status == 409:
                        continue
                    raise
                await put_objects(api, wanted, owner_of(_typed(held)), found.objects)
                return changed
            raise ApiError(409, "Conflict", f"'{wish.spec.name}' is changed by somebody all the time")

        return self._status(self._talk.run(write))

    def _status(self, wish: Wish) -> DeploymentStatus:
        async def look(api: KubernetesApi) -> DeploymentStatus:
            return self._told(wish, *await _look(api, wish))

        return self._talk.run(look)

    def _told(self, wish: Wish, found: Found, pods: Sequence[Object]) -> DeploymentStatus:
        """How a deployment goes, from what the cluster has of it."""
        is_applied = is_as_made(found.known(self._wanted(wish)), found.objects)
        deployments = [body for body in found.objects if body["kind"] == DEPLOYMENTS.kind]
        status = read_deployment(wish, deployments, pods, is_applied=is_applied, now_s=time.time())
        shares = [version for version in wish.spec.versions if version.weight]
        if len(shares) > 1 and not status.message and not found.has_routes:
            status = replace(status, message=_NO_ROUTES)
        return status

    def _wanted(self, wish: Wish) -> list[Object]:
        """The objects that a wish makes."""
        spec = wish.spec
        revisions = {version.name: wish.revision(version.name).number for version in spec.versions}
        return wanted_objects(spec, self._device_resource, revisions)


async def _look(api: KubernetesApi, wish: Wish) -> tuple[Found, list[Object]]:
    """What the cluster has of a deployment, and its pods."""
    namespace, name = wish.spec.namespace, wish.spec.name
    selector = f"{NAME_LABEL}={name},{MANAGED}"
    found, (pods, _) = await asyncio.gather(read_objects(api, namespace, name), api.list(PODS, namespace, selector))
    return replace(found, objects=_of(wish, found.objects)), pods


def _name(deployment: str) -> str:
    return f"{deployment}-deployment"


def _exists(spec: DeploymentSpec) -> DeploymentExistsError:
    return DeploymentExistsError(
        f"There is a deployment '{spec.name}' in namespace '{spec.namespace}' already.",
        fix="Change it with `apply` or `update`, or choose another name.",
        param="name",
    )


def _held(wish: Wish) -> Object:
    key, _, value = MANAGED.partition("=")
    labels = _HOLDS | {NAME_LABEL: wish.spec.name, key: value}
    metadata = {"name": _name(wish.spec.name), "namespace": wish.spec.namespace, "labels": labels}
    return _typed({"metadata": metadata, "data": {_KEY: _text(wish)}})


def _typed(body: Object) -> Object:
    return {**body, "apiVersion": CONFIG_MAPS.api_version, "kind": CONFIG_MAPS.kind}


def _text(wish: Wish) -> str:
    return msgspec.json.encode(wish).decode()


def _read(body: Object) -> Wish:
    wish = msgspec.json.decode(body["data"][_KEY], type=Wish)
    return replace(wish, uid=str(body["metadata"]["uid"]))


def _of(wish: Wish, bodies: Sequence[Object]) -> list[Object]:
    """Those of a deployment."""

    def is_own(metadata: dict[str, Any]) -> bool:
        labels = metadata.get("labels") or {}
        return metadata.get("namespace") == wish.spec.namespace and labels.get(NAME_LABEL) == wish.spec.name

    return [body for body in bodies if is_own(body["metadata"])]


def _is_about(about: Object, names: set[tuple[str, str]]) -> bool:
    kind, name = str(about.get("kind", "")), str(about.get("name", ""))
    return (kind, name) in names or (kind == "ReplicaSet" and (DEPLOYMENTS.kind, name.rpartition("-")[0]) in names)
