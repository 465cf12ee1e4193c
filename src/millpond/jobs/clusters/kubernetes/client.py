"""The API server, as few verbs on JSON objects; the one module that imports the Kubernetes library.

`kubernetes_asyncio` owns what is hard about talking to a cluster: finding it (in a pod, or by kubeconfig with its exec
plugins and token renewal), TLS, and the session. Its generated classes are not used: objects stay JSON, because our
kinds have no classes there and pods must pass through untouched. Throttling (429) and passing trouble of the server
are waited out here, within limits; every other refusal becomes an `ApiError`.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import kubernetes_asyncio.client
import kubernetes_asyncio.config

from millpond.base.errors import MillpondError
from millpond.jobs.clusters.kubernetes.kinds import PODS, Object, ResourceKind

_TRIES = 6
_FIRST_WAIT_S, _LAST_WAIT_S = 0.2, 10.0
_TIMEOUT_S = 30.0
_PAGE = 500
_PASSING = frozenset({429, 500, 502, 503, 504})
_MERGE = "application/merge-patch+json"
_MAX_LINE = 16 << 20  # one event of a watch: an object is at most 1.5 MiB, with managed fields twice that


class ApiError(MillpondError):
    """The API server refused, or could not be reached (`status` 0)."""

    code = "kubernetes_api"

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"The API server says {status or 'nothing'}: {message[:2000]}")
        self.status = status
        self.reason = reason
        self.said = message


class KubernetesApi:
    """One cluster.

    Args:
        client: The library's client; it finds the server and proves who we are.
        first_wait_s: The first wait before a request is tried again; it doubles.
    """

    def __init__(self, client: Any, first_wait_s: float = _FIRST_WAIT_S) -> None:
        self._client = client
        self._first_wait_s = first_wait_s

    @classmethod
    async def connect(cls, kubeconfig: Path | None = None, context: str | None = None) -> KubernetesApi:
        """Finds the cluster: the pod's own, or the one that kubeconfig names.

        Raises:
            MillpondError: There is neither.
        """
        configuration = kubernetes_asyncio.client.Configuration()
        config: Any = kubernetes_asyncio.config
        try:
            if kubeconfig is None and context is None:
                config.load_incluster_config(configuration)
            else:
                path = None if kubeconfig is None else str(kubeconfig)
                await config.load_kube_config(path, context=context, client_configuration=configuration)
        except (config.ConfigException, OSError, ValueError) as error:
            fix = "Run it in a pod with a service account, or name a file with --kubeconfig."
            raise MillpondError(f"There is no way to the cluster: {error}", fix=fix) from None
        return cls(kubernetes_asyncio.client.ApiClient(configuration))

    @classmethod
    def at(cls, url: str, first_wait_s: float = _FIRST_WAIT_S) -> KubernetesApi:
        """A server without credentials, such as `kubectl proxy`."""
        configuration = kubernetes_asyncio.client.Configuration(host=url)
        return cls(kubernetes_asyncio.client.ApiClient(configuration), first_wait_s)

    async def close(self) -> None:
        """Closes the session."""
        await self._client.close()

    async def list(self, kind: ResourceKind, namespace: str = "", selector: str = "") -> tuple[list[Object], str]:
        """All objects, page by page, and the version of the cluster they were read at."""
        items: list[Object] = []
        query = {"limit": str(_PAGE)} | ({"labelSelector": selector} if selector else {})
        while True:
            page = await self._send("GET", kind.path(namespace), query)
            for item in page.get("items") or ():
                items.append({"apiVersion": kind.api_version, "kind": kind.kind} | item)
            following = page.get("metadata", {}).get("continue")
            if not following:
                return items, str(page.get("metadata", {}).get("resourceVersion", ""))
            query["continue"] = following

    async def watch(
        self, kind: ResourceKind, version: str, namespace: str = "", selector: str = "", timeout_s: float = 290.0
    ) -> AsyncIterator[tuple[str, Object]]:
        """What changed after that version, until the server ends the stream.

        Raises:
            ApiError: Status 410 when the version is too old to go on from.
        """
        query = {"watch": "true", "resourceVersion": version, "allowWatchBookmarks": "true"}
        query |= {"timeoutSeconds": str(int(timeout_s))} | ({"labelSelector": selector} if selector else {})
        limits = aiohttp.ClientTimeout(total=timeout_s + 30.0, sock_connect=_TIMEOUT_S)
        try:
            response = await self._call("GET", kind.path(namespace), query, None, limits)
            async with response:
                await _check(response)
                async for line in _lines(response):
                    event = json.loads(line)
                    found = event["object"]
                    if event["type"] == "ERROR":
                        raise ApiError(int(found.get("code", 500)), found.get("reason", ""), found.get("message", ""))
                    yield event["type"], {"apiVersion": kind.api_version, "kind": kind.kind} | found
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise ApiError(0, "Unreachable", f"{type(error).__name__}: {error}") from None

    async def read_log(
        self, namespace: str, pod: str, container: str, *, follow: bool = False, tail: int | None = None
    ) -> AsyncIterator[bytes]:
        """What a container wrote, in pieces as they come; with `follow` until it has ended."""
        query = {"container": container} | ({"follow": "true"} if follow else {})
        query |= {} if tail is None else {"tailLines": str(tail)}
        limits = aiohttp.ClientTimeout(total=None, sock_connect=_TIMEOUT_S, sock_read=None if follow else _TIMEOUT_S)
        try:
            response = await self._call("GET", PODS.path(namespace, pod, "log"), query, None, limits)
            async with response:
                await _check(response)
                async for piece in response.content.iter_any():
                    yield piece
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ApiError(0, "Unreachable", f"{type(error).__name__}: {error}") from None

    async def get(self, kind: ResourceKind, namespace: str, name: str) -> Object | None:
        """One object, or None."""
        try:
            return await self._send("GET", kind.path(namespace, name))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def create(self, kind: ResourceKind, body: Object, *, dry_run: bool = False) -> Object:
        """Creates an object; `dry_run` only checks whether it could be."""
        namespace = body["metadata"].get("namespace", "")
        return await self._send("POST", kind.path(namespace), {"dryRun": "All"} if dry_run else None, body)

    async def replace(self, kind: ResourceKind, body: Object) -> Object:
        """Replaces an object; refused with 409 when it is not at the version that the body names."""
        metadata = body["metadata"]
        return await self._send("PUT", kind.path(metadata.get("namespace", ""), metadata["name"]), None, body)

    async def patch(
        self, kind: ResourceKind, namespace: str, name: str, body: Object, subresource: str = ""
    ) -> Object | None:
        """Merges fields into an object, or does nothing when there is none."""
        try:
            return await self._send("PATCH", kind.path(namespace, name, subresource), None, body)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def delete(
        self, kind: ResourceKind, namespace: str, name: str, *, grace_s: int | None = None, uid: str = ""
    ) -> None:
        """Deletes an object and then what it owns; one that is gone, or (`uid`) is another by now, is no trouble."""
        query = {"propagationPolicy": "Background"}
        query |= {} if grace_s is None else {"gracePeriodSeconds": str(grace_s)}
        body = {"preconditions": {"uid": uid}} if uid else None
        try:
            await self._send("DELETE", kind.path(namespace, name), query, body)
        except ApiError as error:
            if error.status != 404 and not (uid and error.status == 409):
                raise

    async def _send(
        self, method: str, path: str, query: Mapping[str, str] | None = None, body: Object | None = None
    ) -> Object:
        wait_s = self._first_wait_s
        limits = aiohttp.ClientTimeout(total=_TIMEOUT_S)
        for tries_left in reversed(range(_TRIES)):
            try:
                response = await self._call(method, path, query, body, limits)
                async with response:
                    await _check(response)
                    answer: Object = json.loads(await response.read())
                    return answer
            except ApiError as error:
                if error.status not in _PASSING or not tries_left:
                    raise
                asked_s = _retry_after(response)
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                if not tries_left:
                    raise ApiError(0, "Unreachable", f"{type(error).__name__}: {error}") from None
                asked_s = 0.0
            await asyncio.sleep(min(_LAST_WAIT_S, max(asked_s, wait_s * random.uniform(0.5, 1.0))))
            wait_s *= 2
        raise AssertionError("the last try either returns or raises")

    async def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Object | None,
        limits: aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:
        headers = {"Accept": "application/json"} | ({"Content-Type": _MERGE} if method == "PATCH" else {})
        response: aiohttp.ClientResponse = await self._client.call_api(
            path, method, query_params=list((query or {}).items()), header_params=headers, body=body,
            auth_settings=["BearerToken"], _preload_content=False, _return_http_data_only=True,
            _request_timeout=limits,
        )  # fmt: skip
        return response


async def _check(response: aiohttp.ClientResponse) -> None:
    if response.status < 400:
        return
    text = (await response.read()).decode("utf-8", "replace")
    try:
        said = json.loads(text)
    except ValueError:
        said = None
    said = said if isinstance(said, dict) else {}
    raise ApiError(response.status, str(said.get("reason", "")), str(said.get("message", text)))


def _retry_after(response: aiohttp.ClientResponse) -> float:
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isdigit() else 0.0


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Lines of a stream; the session's own reader refuses those above 64 KiB."""
    held = bytearray()
    async for chunk in response.content.iter_any():
        held += chunk
        *lines, rest = held.split(b"\n")
        held = bytearray(rest)
        if len(held) > _MAX_LINE:
            raise ApiError(500, "TooLong", "an event of a watch has no end.")
        for line in lines:
            if line.strip():
                yield bytes(line)
