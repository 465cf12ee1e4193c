"""The verbs of jobs and deployments against a jobs service over HTTP, with the standard library alone."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from millpond.api.deployment import DeploymentExistsError, DeploymentNotFoundError, DeploymentStatus
from millpond.api.job import JobExistsError, JobNotFoundError, JobStatus, SpecError
from millpond.base.errors import MillpondError
from millpond.jobs.looking import NodeStatus
from millpond.jobs.store import EventRecord

_ERRORS: dict[str, type[MillpondError]] = {
    kind.code: kind
    for kind in (SpecError, JobNotFoundError, JobExistsError, DeploymentNotFoundError, DeploymentExistsError)
}
_CHUNK = 1 << 14
_T = TypeVar("_T")


class RestJobsClient:
    """Jobs and deployments of a service.

    Args:
        url: Where it listens: http://127.0.0.1:8470.
        token: What it wants to see.
    """

    def __init__(self, url: str, token: str, timeout_s: float = 60.0) -> None:
        self._address = urlsplit(url)
        self._token = token
        self._timeout_s = timeout_s

    def submit(self, text: str) -> list[JobStatus]:
        """Submits every job of a YAML text, or none."""
        return self._ask(list[JobStatus], "POST", "/jobs", body=text)

    def jobs(self, namespace: str | None = None, *, with_deleted: bool = False) -> list[JobStatus]:
        """Jobs, newest first."""
        return self._ask(list[JobStatus], "GET", "/jobs", namespace=namespace, deleted="1" if with_deleted else None)

    def get(self, name: str, namespace: str | None = None) -> JobStatus:
        """A job by name or uid."""
        return self._ask(JobStatus, "GET", f"/jobs/{quote(name, safe='')}", namespace=namespace)

    def events(self, name: str, namespace: str | None = None) -> list[EventRecord]:
        """What happened to a job, oldest first."""
        return self._ask(list[EventRecord], "GET", f"/jobs/{quote(name, safe='')}/events", namespace=namespace)

    def delete(self, name: str, namespace: str | None = None) -> list[JobStatus]:
        """Deletes a job; its record stays."""
        return self._ask(list[JobStatus], "DELETE", f"/jobs/{quote(name, safe='')}", namespace=namespace)

    def queue(self) -> list[JobStatus]:
        """Jobs that wait, in the scheduler's order."""
        return self._ask(list[JobStatus], "GET", "/queue")

    def nodes(self) -> list[NodeStatus]:
        """The machines and what jobs hold of them."""
        return self._ask(list[NodeStatus], "GET", "/nodes")

    def logs(
        self, name: str, *, instance: str | None = None, follow: bool = False, tail: int | None = None
    ) -> Iterator[bytes]:
        """An instance's output in pieces."""
        query = {"instance": instance, "follow": "1" if follow else None, "tail": None if tail is None else str(tail)}
        connection, reply = self._send("GET", f"/jobs/{quote(name, safe='')}/logs", "", query)
        try:
            while piece := reply.read1(_CHUNK):
                yield piece
        finally:
            connection.close()

    def apply_deployments(self, text: str) -> list[DeploymentStatus]:
        """Makes or changes the deployments of a YAML text."""
        return self._ask(list[DeploymentStatus], "POST", "/deployments", body=text)

    def deployments(self, namespace: str | None = None) -> list[DeploymentStatus]:
        """Deployments, newest first."""
        return self._ask(list[DeploymentStatus], "GET", "/deployments", namespace=namespace)

    def deployment(self, name: str, namespace: str | None = None) -> DeploymentStatus:
        """A deployment by name or uid."""
        return self._ask(DeploymentStatus, "GET", _deployment(name), namespace=namespace)

    def deployment_events(self, name: str, namespace: str | None = None) -> list[EventRecord]:
        """What happened to a deployment, oldest first."""
        return self._ask(list[EventRecord], "GET", _deployment(name, "/events"), namespace=namespace)

    def scale_deployment(
        self, name: str, replicas: int, version: str | None = None, namespace: str | None = None
    ) -> DeploymentStatus:
        """Sets how many replicas a version has."""
        path, count = _deployment(name, "/scale"), str(replicas)
        return self._ask(DeploymentStatus, "POST", path, replicas=count, version=version, namespace=namespace)

    def split_deployment(
        self, name: str, weights: Mapping[str, int], namespace: str | None = None
    ) -> DeploymentStatus:
        """Sets how versions share requests."""
        said = ",".join(f"{version}:{weight}" for version, weight in weights.items())
        return self._ask(DeploymentStatus, "POST", _deployment(name, "/split"), weights=said, namespace=namespace)

    def roll_back_deployment(
        self, name: str, revision: int | None = None, version: str | None = None, namespace: str | None = None
    ) -> DeploymentStatus:
        """Goes back to an earlier revision of a version."""
        path, number = _deployment(name, "/rollback"), None if revision is None else str(revision)
        return self._ask(DeploymentStatus, "POST", path, revision=number, version=version, namespace=namespace)

    def delete_deployment(self, name: str, namespace: str | None = None) -> DeploymentStatus:
        """Deletes a deployment once its replicas have finished what they have."""
        return self._ask(DeploymentStatus, "DELETE", _deployment(name), namespace=namespace)

    def _ask(self, kind: type[_T], method: str, path: str, *, body: str = "", **query: str | None) -> _T:
        connection, reply = self._send(method, path, body, query)
        try:
            return msgspec.json.decode(reply.read(), type=kind)
        finally:
            connection.close()

    def _send(
        self, method: str, path: str, body: str, query: dict[str, str | None]
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        kind = http.client.HTTPSConnection if self._address.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._address.hostname or "", self._address.port, timeout=self._timeout_s)
        given = urlencode({name: value for name, value in query.items() if value is not None})
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/yaml"}
        try:
            connection.request(method, f"/api/v1{path}?{given}", body.encode() or None, headers)
            reply = connection.getresponse()
            if reply.status >= 400:
                raise _error(reply.status, reply.read())
        except OSError as error:
            connection.close()
            raise MillpondError(f"The jobs service does not answer: {error}.", fix="Is it running?") from None
        except BaseException:
            connection.close()
            raise
        return connection, reply


def _deployment(name: str, verb: str = "") -> str:
    return f"/deployments/{quote(name, safe='')}{verb}"


def _error(status: int, body: bytes) -> MillpondError:
    try:
        found: dict[str, Any] = json.loads(body)["error"]
        kind = _ERRORS.get(found["code"], MillpondError)
        return kind(found["message"], fix=found.get("fix") or "", param=found.get("param"))
    except (ValueError, KeyError, TypeError):
        return MillpondError(f"The jobs service answered with status {status}.")
