"""An API server on kmock: what its own emulator leaves out and the operator depends on.

kmock gives HTTP, discovery, errors, requests to assert on and faults to inject (`server["post", ...][:3] << 429`). On
top of it: versions of objects and 409 on a stale one, watches from a version on with 410 when it was compacted, status
subresources, graceful deletion, finalizers, owners, label selectors, dry runs; and every object is checked, built-in
kinds with kubernetes-validate, ours with the schemas in deploy/crds, where unknown fields are dropped as a real server
drops them.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import jsonschema
import kubernetes_validate
import yaml
from kmock import KubernetesError, KubernetesScaffold, Request, action

Object = dict[str, Any]
DEPLOY = Path(__file__).parents[3] / "deploy"
KUBERNETES_VERSION = "1.36"
_CLUSTER_WIDE = {"nodes", "topologies"}
_CHECKED = ("v1", "apps/v1", "autoscaling/v2", "coordination.k8s.io/v1", "networking.k8s.io/v1",
            "rbac.authorization.k8s.io/v1", "scheduling.k8s.io/v1alpha2")  # fmt: skip


def refuse(status: int, reason: str, message: str) -> KubernetesError:
    return KubernetesError(status=status, reason=reason, message=message, details={})


def load_crds() -> dict[str, Object]:
    """Schemas by plural.group."""
    found = {}
    for path in sorted((DEPLOY / "crds").glob("*.yaml")):
        for body in yaml.load_all(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            found[body["metadata"]["name"]] = body
    return found


CRDS = load_crds()


@attrs.define(kw_only=True)
class ApiServer(KubernetesScaffold):
    """The server, empty. `is_deaf`: watches stay open and say nothing. `lacks`: groups that are not installed."""

    stored: dict[str, dict[tuple[str, str], Object]] = attrs.field(factory=dict, init=False)
    history: list[tuple[int, str, str, Object]] = attrs.field(factory=list, init=False)
    version: int = attrs.field(default=100, init=False)
    oldest: int = attrs.field(default=0, init=False)
    news: asyncio.Condition = attrs.field(factory=asyncio.Condition, init=False)
    generation: int = attrs.field(default=0, init=False)
    is_deaf: bool = attrs.field(default=False, init=False)
    is_closed: bool = attrs.field(default=False, init=False)
    lacks: set[str] = attrs.field(factory=set, init=False)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.fallback[action.LIST] << self._list
        self.fallback[action.WATCH] << self._watch
        self.fallback[action.FETCH] << self._fetch
        self.fallback[action.CREATE] << self._create
        self.fallback[action.UPDATE] << self._patch
        self.fallback[action.DELETE] << self._delete
        self.fallback["put"] << self._replace
        for crd in CRDS.values():
            spec = crd["spec"]
            for served in spec["versions"]:
                self.resources[f"{spec['group']}/{served['name']}/{spec['names']['plural']}"] = {}

    # For tests ------------------------------------------------------------------------------------------------

    def all(self, plural: str) -> list[Object]:
        """Objects of a kind, oldest first."""
        return [obj for key, objs in self.stored.items() if key.rpartition("/")[2] == plural for obj in objs.values()]

    def find(self, plural: str, name: str, namespace: str = "default") -> Object | None:
        return next((obj for obj in self.all(plural) if obj["metadata"]["name"] == name
                     and obj["metadata"].get("namespace", namespace) == namespace), None)  # fmt: skip

    async def put(self, body: Object) -> Object:
        """Creates an object as a user would."""
        return await self._add(_plural_key(body), copy.deepcopy(body), body["metadata"].get("namespace", ""))

    async def change(self, plural: str, name: str, patch: Object, namespace: str = "default") -> None:
        """Merges into an object, whatever part of it."""
        key, obj = self._place(plural, name, namespace)
        await self._store(key, _next_generation(obj, _merge(obj, patch)), "MODIFIED")

    async def remove(self, plural: str, name: str, namespace: str = "default", grace_s: int | None = None) -> None:
        """Deletes an object as a user would."""
        key, obj = self._place(plural, name, namespace)
        await self._begin_delete(key, obj, grace_s)

    async def compact(self) -> None:
        """Forgets the past and ends every watch: what was not seen yet can only be listed."""
        self.history.clear()
        self.version += 1
        self.oldest = self.version
        await self.end_watches()

    async def end_watches(self) -> None:
        """Ends every stream, as servers do every few minutes."""
        self.generation += 1
        async with self.news:
            self.news.notify_all()

    async def set_pod(self, name: str, phase: str, code: int | None = None, reason: str = "",
                      namespace: str = "default") -> None:  # fmt: skip
        """What the kubelet says about a pod."""
        pod = self.find("pods", name, namespace)
        assert pod is not None, f"there is no pod {name}"
        now = _now()
        state: Object = {"running": {"startedAt": now}} if code is None else {
            "terminated": {"exitCode": code, "reason": reason or ("Completed" if code == 0 else "Error"),
                           "startedAt": now, "finishedAt": now}}  # fmt: skip
        names = [container["name"] for container in pod["spec"]["containers"]]
        statuses = [{"name": one, "state": state, "ready": code is None, "restartCount": 0, "image": "", "imageID": ""}
                    for one in names]  # fmt: skip
        await self.change("pods", name, {"status": {"phase": phase, "containerStatuses": statuses}}, namespace)

    async def kubelet(self) -> None:
        """Every node's: starts bound pods, ends deleted ones with 143."""
        while True:
            for pod in self.all("pods"):
                metadata, phase = pod["metadata"], pod.get("status", {}).get("phase")
                name, namespace = metadata["name"], metadata["namespace"]
                if not pod["spec"].get("nodeName"):
                    continue
                if metadata.get("deletionTimestamp") and metadata.get("deletionGracePeriodSeconds"):
                    if phase == "Running":
                        await self.set_pod(name, "Failed", 143, namespace=namespace)
                    await self.remove("pods", name, namespace, grace_s=0)
                elif phase == "Pending" and not metadata.get("deletionTimestamp"):
                    await self.set_pod(name, "Running", namespace=namespace)
            await asyncio.sleep(0.01)

    # Verbs ---------------------------------------------------------------------------------------------------

    async def _list(self, request: Request) -> Object:
        key = self._key(request)
        items = [copy.deepcopy(obj) for (namespace, _), obj in self.stored.get(key, {}).items()
                 if request.namespace in (None, namespace) and _selects(request, obj)]  # fmt: skip
        return {"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": str(self.version)}, "items": items}

    async def _watch(self, request: Request) -> AsyncIterator[Any]:
        key, since = self._key(request), int(request.params.get("resourceVersion") or self.version)
        generation = self.generation
        yield b""
        if since < self.oldest:
            gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}
            yield {"type": "ERROR", "object": gone}
            return
        while self.generation == generation and not self.is_closed:
            for version, of, event, obj in list(self.history):
                if version > since and not self.is_deaf:
                    since = version
                    is_asked = of == key and request.namespace in (None, obj["metadata"].get("namespace"))
                    if is_asked and _selects(request, obj):
                        yield {"type": event, "object": obj}
            async with self.news:
                if self.version <= since or self.is_deaf:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(5.0):
                            await self.news.wait()

    async def _fetch(self, request: Request) -> Object:
        return copy.deepcopy(self._get(request))

    async def _create(self, request: Request) -> Object:
        key = self._key(request)
        if request.params.get("dryRun"):
            self._check(key, request.data)
            if (request.namespace or "", request.data["metadata"]["name"]) in self.stored.get(key, {}):
                raise refuse(409, "AlreadyExists", "it exists")
            return request.data
        return await self._add(key, request.data, request.namespace or "")

    async def _replace(self, request: Request) -> Object:
        key, old = self._key(request), self._get(request)
        wanted = request.data["metadata"].get("resourceVersion")
        if wanted is not None and wanted != old["metadata"]["resourceVersion"]:
            raise refuse(409, "Conflict", "the object has been modified")
        new = copy.deepcopy(request.data)
        for name in ("uid", "creationTimestamp", "generation", "deletionTimestamp"):
            if name in old["metadata"]:
                new["metadata"][name] = old["metadata"][name]
        if "status" in old:
            new["status"] = old["status"]
        return await self._store(key, _next_generation(old, new), "MODIFIED")

    async def _patch(self, request: Request) -> Object:
        key, old = self._key(request), self._get(request)
        assert request.headers["Content-Type"] == "application/merge-patch+json"
        patch = copy.deepcopy(request.data)
        if request.subresource == "status":
            patch = {"status": patch.get("status")}
        else:
            patch.pop("status", None)
        return await self._store(key, _next_generation(old, _merge(old, patch)), "MODIFIED")

    async def _delete(self, request: Request) -> Object:
        key, obj = self._key(request), self._get(request)
        wanted = ((request.data or {}).get("preconditions") or {}).get("uid")
        if wanted and wanted != obj["metadata"]["uid"]:
            raise refuse(409, "Conflict", "the UID in the precondition does not match")
        grace = request.params.get("gracePeriodSeconds")
        await self._begin_delete(key, obj, None if grace is None else int(grace))
        return obj

    # Storage -------------------------------------------------------------------------------------------------

    def _key(self, request: Request) -> str:
        resource = request.resource
        assert resource is not None
        group = f"{resource.group}/{resource.version}" if resource.group else str(resource.version)
        if str(resource.group) in self.lacks:
            raise refuse(404, "NotFound", "the server could not find the requested resource")
        if "." in str(resource.group) and not str(resource.group).endswith("k8s.io"):
            crd = CRDS.get(f"{resource.plural}.{resource.group}")
            if crd is None and resource.group != "scheduling.volcano.sh":
                raise refuse(404, "NotFound", "the server could not find the requested resource")
        return f"{group}/{resource.plural}"

    def _get(self, request: Request) -> Object:
        found = self.stored.get(self._key(request), {}).get((request.namespace or "", request.name or ""))
        if found is None:
            raise refuse(404, "NotFound", f"{request.name} not found")
        return found

    def _place(self, plural: str, name: str, namespace: str) -> tuple[str, Object]:
        obj = self.find(plural, name, namespace)
        assert obj is not None, f"there is no {plural} {name}"
        return _plural_key(obj), obj

    async def _add(self, key: str, body: Object, namespace: str) -> Object:
        name = body["metadata"]["name"]
        if (namespace, name) in self.stored.get(key, {}):
            raise refuse(409, "AlreadyExists", f"{name} already exists")
        body["metadata"] |= {"uid": str(uuid.uuid4()), "creationTimestamp": _now(), "generation": 1}
        if namespace:
            body["metadata"]["namespace"] = namespace
        body.pop("status", None) if key not in ("v1/nodes",) else None
        if key == "v1/pods":
            body["status"] = {"phase": "Pending"}
        return await self._store(key, body, "ADDED")

    async def _store(self, key: str, body: Object, event: str) -> Object:
        body = self._check(key, body)
        metadata = body["metadata"]
        self.version += 1
        metadata["resourceVersion"] = str(self.version)
        place = (metadata.get("namespace", ""), metadata["name"])
        is_over = metadata.get("deletionTimestamp") and not metadata.get("finalizers")
        if is_over and not metadata.get("deletionGracePeriodSeconds"):
            self.stored[key].pop(place, None)
            event = "DELETED"
        else:
            self.stored.setdefault(key, {})[place] = body
        self.history.append((self.version, key, event, copy.deepcopy(body)))
        async with self.news:
            self.news.notify_all()
        if event == "DELETED":
            await self._collect(metadata["uid"])
        return copy.deepcopy(body)

    async def _begin_delete(self, key: str, obj: Object, grace_s: int | None) -> None:
        grace = 0
        if key == "v1/pods" and obj["spec"].get("nodeName") and obj["status"]["phase"] in ("Pending", "Running"):
            grace = obj["spec"].get("terminationGracePeriodSeconds", 30) if grace_s is None else grace_s
        if grace and obj["metadata"].get("deletionTimestamp"):
            grace = min(grace, obj["metadata"].get("deletionGracePeriodSeconds", grace))
        at = (datetime.now(UTC) + timedelta(seconds=grace)).strftime("%Y-%m-%dT%H:%M:%SZ")
        patch = {"metadata": {"deletionTimestamp": at, "deletionGracePeriodSeconds": grace}}
        await self._store(key, _merge(obj, patch), "MODIFIED")

    async def _collect(self, uid: str) -> None:
        """What the deleted object owned goes too."""
        for key, objs in list(self.stored.items()):
            for obj in list(objs.values()):
                owners = obj["metadata"].get("ownerReferences") or ()
                if any(owner["uid"] == uid for owner in owners) and not obj["metadata"].get("deletionTimestamp"):
                    await self._begin_delete(key, obj, None)

    def _check(self, key: str, body: Object) -> Object:
        group, _, plural = key.rpartition("/")
        crd = CRDS.get(f"{plural}.{group.partition('/')[0]}")
        if crd is not None:
            schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
            body = _prune(body, schema, is_root=True)
            validator = jsonschema.Draft7Validator(schema)
            for error in validator.iter_errors(body):
                path = ".".join(map(str, error.absolute_path))
                raise refuse(422, "Invalid", f"{path}: {error.message}")
        elif group in _CHECKED:
            try:
                kubernetes_validate.validate(body, KUBERNETES_VERSION, strict=True)
            except kubernetes_validate.ValidationError as error:
                path = ".".join(map(str, error.absolute_path))
                raise refuse(422, "Invalid", f"{path}: {error.message}") from None
        return body


def _plural_key(body: Object) -> str:
    kind = body["kind"].lower()
    plural = "topologies" if kind == "topology" else f"{kind}s"
    return f"{body['apiVersion']}/{plural}"


def _next_generation(old: Object, new: Object) -> Object:
    """The spec's changes are counted."""
    if new.get("spec") != old.get("spec"):
        new["metadata"]["generation"] = old["metadata"].get("generation", 1) + 1
    return new


def _merge(old: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    new = dict(old) if isinstance(old, dict) else {}
    for name, value in patch.items():
        if value is None:
            new.pop(name, None)
        else:
            new[name] = _merge(new.get(name), value)
    return new


def _prune(value: Any, schema: Object, *, is_root: bool = False) -> Any:
    """Drops fields that a structural schema does not name."""
    if isinstance(value, list):
        return [_prune(item, schema.get("items", {})) for item in value]
    if not isinstance(value, dict) or schema.get("x-kubernetes-preserve-unknown-fields"):
        return value
    extra = schema.get("additionalProperties")
    if isinstance(extra, dict):
        return {name: _prune(item, extra) for name, item in value.items()}
    known = schema.get("properties", {})
    always = ("apiVersion", "kind", "metadata") if is_root else ()
    return {name: item if name in always else _prune(item, known[name]) for name, item in value.items()
            if name in known or name in always}  # fmt: skip


def _selects(request: Request, obj: Object) -> bool:
    labels = obj["metadata"].get("labels") or {}
    wanted = [part for part in request.params.get("labelSelector", "").split(",") if part]
    return all(labels.get(name) == value if sign else name in labels
               for name, sign, value in (part.partition("=") for part in wanted))  # fmt: skip


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def make_node(name: str, cpus: int = 8, devices: int = 0, **more: Any) -> Object:
    """A machine that is ready."""
    allocatable = {"cpu": str(cpus), "memory": "64Gi"} | ({"nvidia.com/gpu": str(devices)} if devices else {})
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name} | more.pop("labels", {})},
        "spec": more,
        "status": {"allocatable": allocatable, "conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
    }  # fmt: skip
