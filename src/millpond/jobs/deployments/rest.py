"""Deployments over HTTP: verbs for `jobs.rest`. Owns the translation only; imported by `millpond jobs serve`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.requests import Request

from millpond.api.deployment import DeploymentStatus
from millpond.api.job import SpecError
from millpond.jobs.deployments.client import DeploymentsClient
from millpond.jobs.rest import Verb, read_number
from millpond.jobs.store import EventRecord

_NAMED = "/deployments/{name}"


def _name(request: Request) -> str:
    return str(request.path_params["name"])


def _namespace(request: Request) -> str | None:
    return request.query_params.get("namespace")


def _scale(client: DeploymentsClient, request: Request) -> DeploymentStatus:
    version = request.query_params.get("version")
    return client.scale(_name(request), read_number(request, "replicas"), version, _namespace(request))


def _split(client: DeploymentsClient, request: Request) -> DeploymentStatus:
    weights = {}
    for part in request.query_params.get("weights", "").split(","):
        version, _, weight = part.rpartition(":")
        if not version or not (weight.isascii() and weight.isdigit() and len(weight) < 7):
            raise SpecError("weights must be VERSION:WEIGHT, with commas between.", param="weights")
        weights[version] = int(weight)
    return client.split(_name(request), weights, _namespace(request))


def _roll_back(client: DeploymentsClient, request: Request) -> DeploymentStatus:
    revision = read_number(request, "revision") if "revision" in request.query_params else None
    return client.roll_back(_name(request), revision, request.query_params.get("version"), _namespace(request))


def _delete(client: DeploymentsClient, request: Request) -> DeploymentStatus:
    status = client.get(_name(request), _namespace(request))
    client.delete([status.uid], wait_s=0.0)
    return status


VERBS = (
    Verb(
        "POST", "/deployments", "Makes or changes the deployments of a YAML or JSON body.", list[DeploymentStatus],
        lambda client, text: client.apply(text), reads=True,
    ),
    Verb(
        "GET", "/deployments", "Lists deployments, newest first.", list[DeploymentStatus],
        lambda client, request: client.deployments(_namespace(request)), ("namespace",),
    ),
    Verb(
        "GET", _NAMED, "Shows a deployment, by name or uid.", DeploymentStatus,
        lambda client, request: client.get(_name(request), _namespace(request)), ("namespace",),
    ),
    Verb(
        "DELETE", _NAMED, "Deletes a deployment once its replicas have finished what they have.", DeploymentStatus,
        _delete, ("namespace",),
    ),
    Verb(
        "GET", f"{_NAMED}/events", "Lists what happened to a deployment.", list[EventRecord],
        lambda client, request: client.events(client.get(_name(request), _namespace(request))), ("namespace",),
    ),
    Verb(
        "POST", f"{_NAMED}/scale", "Sets how many replicas a version has.", DeploymentStatus, _scale,
        ("namespace", "replicas", "version"),
    ),
    Verb(
        "POST", f"{_NAMED}/split", "Splits requests between versions: weights=v1:90,v2:10.", DeploymentStatus, _split,
        ("namespace", "weights"),
    ),
    Verb(
        "POST", f"{_NAMED}/rollback", "Goes back to an earlier revision.", DeploymentStatus, _roll_back,
        ("namespace", "revision", "version"),
    ),
)  # fmt: skip


def verbs_with(make_client: Callable[[], DeploymentsClient]) -> dict[Verb, Callable[[], Any]]:
    """The verbs, as `jobs.rest.make_app` takes them."""
    return dict.fromkeys(VERBS, make_client)
