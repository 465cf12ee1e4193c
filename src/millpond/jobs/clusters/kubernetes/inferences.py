"""KubeDL's Inference on the API server: its objects are made and kept, its status says how they go.

An Inference becomes the objects of a deployment of ours, which it owns. Nothing is remembered between two looks, so the
operator may die at any line. Owned by the operator; knows no jobs.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Callable
from typing import Any

from millpond.api.deployment import DeploymentStatus, VersionSpec
from millpond.api.job import SpecError
from millpond.jobs.clusters.kubernetes.client import ApiError, KubernetesApi
from millpond.jobs.clusters.kubernetes.kinds import (
    DEPLOYMENTS,
    INFERENCES,
    MODEL_VERSIONS,
    PODS,
    Object,
    owner_of,
)
from millpond.jobs.clusters.kubernetes.reflector import Reflector, key_of
from millpond.jobs.deployments.inference import MODEL_VERSION, mount_model, read_inference
from millpond.jobs.deployments.kubernetes.objects import (
    is_as_made,
    put_objects,
    read_objects,
    wanted_objects,
)
from millpond.jobs.deployments.kubernetes.render import MANAGED, NAME_LABEL
from millpond.jobs.deployments.kubernetes.report import address, read_deployment
from millpond.jobs.deployments.wish import Wish, make_wish
from millpond.jobs.spec_document import Reader

_RETRY_S = 5.0
_SERVER_FIELDS = ("uid", "resourceVersion", "generation", "managedFields", "finalizers", "ownerReferences", "selfLink",
                  "deletionTimestamp", "deletionGracePeriodSeconds")  # fmt: skip
_log = logging.getLogger(__name__)


class Inferences:
    """All Inferences of a cluster.

    Args:
        api: The API server.
        clock: Seconds since the epoch.
        namespace: Only those of this namespace; empty: all.
        device_resource: What nodes call an accelerator.
    """

    def __init__(self, api: KubernetesApi, clock: Callable[[], float], namespace: str, device_resource: str) -> None:
        self._api = api
        self._clock = clock
        self._device_resource = device_resource
        self._pending: set[tuple[str, str]] = set()
        self._news = asyncio.Event()
        self._inferences = Reflector(api, INFERENCES, self._changed, namespace=namespace)
        self._deployments = Reflector(api, DEPLOYMENTS, self._moved, selector=MANAGED, namespace=namespace)
        self._models = Reflector(api, MODEL_VERSIONS, self._came, namespace=namespace)
        self.reflectors = (self._inferences, self._deployments, self._models)

    async def run(self) -> None:
        """Keeps them, for ever."""
        while True:
            await self._news.wait()
            self._news.clear()
            pending, self._pending = self._pending, set()
            left = {key for key in sorted(pending) if not await self._keep(key)}
            if left:
                self._pending |= left
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_RETRY_S):
                        await self._news.wait()
                self._news.set()

    def _changed(self, old: Object | None, new: Object | None) -> None:
        is_same = old is not None and new is not None and old.get("spec") == new.get("spec")
        if new is not None and not is_same:
            self._ask(key_of(new))

    def _moved(self, old: Object | None, new: Object | None) -> None:
        """A Deployment changed or is gone: its Inference, if it is one's, is looked at."""
        body = new or old
        for owner in (body or {}).get("metadata", {}).get("ownerReferences") or ():
            if owner.get("kind") == INFERENCES.kind and body is not None:
                self._ask((body["metadata"]["namespace"], owner["name"]))

    def _came(self, old: Object | None, new: Object | None) -> None:
        """A model came: those who waited for one are looked at."""
        if old is None and new is not None:
            for key in self._inferences.objects:
                self._ask(key)

    def _ask(self, key: tuple[str, str]) -> None:
        self._pending.add(key)
        self._news.set()

    async def _keep(self, key: tuple[str, str]) -> bool:
        """Makes the objects follow, and the status. Returns False for another try."""
        body = self._inferences.objects.get(key)
        if body is None or body["metadata"].get("deletionTimestamp"):
            return True  # what it owns goes with it
        try:
            try:
                status = await self._make(body)
            except SpecError as error:
                status = {"message": str(error), "field": error.param}
            if {name: (body.get("status") or {}).get(name) for name in status} != status:
                await self._api.patch(INFERENCES, *key, {"status": status}, "status")
        except ApiError as error:
            _log.warning("Inference %s/%s: %s", *key, error)
            return False
        return True

    async def _make(self, body: Object) -> Object:
        spec = read_inference(Reader(_without_server_fields(body), ""))
        models = {key[1]: model for key, model in self._models.objects.items() if key[0] == spec.namespace}
        missing = [name for name in map(_model_of, spec.versions) if name and name not in models]
        if missing:
            return {"message": f"ModelVersion {missing[0]} is not there.", "field": None}
        spec = dataclasses.replace(spec, versions=tuple(_with_model(version, models) for version in spec.versions))
        wish = make_wish(spec, str(body["metadata"]["uid"]), self._clock(), "", {})
        found = await read_objects(self._api, spec.namespace, spec.name)
        # NOTE: no revisions: an Inference has none, and a number made anew would exchange every pod.
        wanted = found.known(wanted_objects(spec, self._device_resource, None))
        if not is_as_made(wanted, found.objects):
            await put_objects(self._api, wanted, owner_of(body), found.objects)
            found = await read_objects(self._api, spec.namespace, spec.name)
        pods, _ = await self._api.list(PODS, spec.namespace, f"{NAME_LABEL}={spec.name},{MANAGED}")
        deployments = [one for one in found.objects if one["kind"] == DEPLOYMENTS.kind]
        status = read_deployment(wish, deployments, pods, is_applied=True, now_s=self._clock())
        return _status(wish, status)


def _model_of(version: VersionSpec) -> str:
    return str(((version.template.pod.get("metadata") or {}).get("annotations") or {}).get(MODEL_VERSION, ""))


def _with_model(version: VersionSpec, models: dict[str, Object]) -> VersionSpec:
    name = _model_of(version)
    if not name:
        return version
    template = version.template
    pod = mount_model(template.pod, models[name], template.role.env["KUBEDL_MODEL_PATH"])
    env = dict(template.role.env)
    if "MODEL_NAME" in env:  # the server's word for it is the model's, not the version's
        env["MODEL_NAME"] = str(models[name].get("spec", {}).get("modelName") or name)
    role = dataclasses.replace(template.role, env=env)
    return dataclasses.replace(version, template=dataclasses.replace(template, role=role, pod=pod))


def _without_server_fields(body: Object) -> Object:
    metadata = {key: value for key, value in body["metadata"].items() if key not in _SERVER_FIELDS}
    return {key: value for key, value in body.items() if key != "status"} | {"metadata": metadata}


def _status(wish: Wish, status: DeploymentStatus) -> dict[str, Any]:
    """KubeDL's fields, and one message."""
    return {
        "inferenceEndpoint": address(wish.spec).removeprefix("http://"),
        "predictorStatuses": [
            {
                "name": version.name,
                "replicas": version.desired,
                "readyReplicas": version.ready,
                "trafficPercent": version.weight,
                "endpoint": address(wish.spec, version.name).removeprefix("http://"),
            }
            for version in status.versions
        ],
        "phase": status.phase.value,
        "message": status.message or None,
        "field": None,
    }
