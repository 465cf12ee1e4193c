"""Deployments over HTTP, from the first replica to the end."""

from __future__ import annotations

import json
import sys

import httpx
import pytest

from millpond.api.deployment import DeploymentNotFoundError
from millpond.jobs.client import JobsClient
from millpond.jobs.deployments.client import DeploymentsClient
from millpond.jobs.deployments.rest import verbs_with
from millpond.jobs.rest import make_app
from millpond.jobs.rest_client import RestJobsClient
from tests.integration.deployments.conftest import SERVER, DeploymentRoom, get
from tests.integration.jobs.conftest import until
from tests.support.jobs_server import serve


def test_the_verbs_over_http(rooms: DeploymentRoom) -> None:
    root, work = rooms.place.root, str(rooms.work)
    verbs = verbs_with(lambda: DeploymentsClient(root, rooms.environment, work))
    app = make_app(lambda: JobsClient(root, rooms.environment, work), "secret", verbs)
    document = {"name": "rest", "run": [sys.executable, "-S", str(SERVER)], "ready": "/ready", "cpus": 0.1}
    with serve(app) as url, httpx.Client(headers={"Authorization": "Bearer secret"}, timeout=60) as client:
        place = f"{url}/api/v1/deployments"
        assert client.get(place, headers={"Authorization": "Bearer x"}).status_code == 401
        made = client.post(place, content=json.dumps(document))
        assert (made.status_code, made.json()[0]["name"]) == (201, "rest")
        rooms.settle("rest")
        assert get(client.get(f"{place}/rest").json()["address"])[0] == 200
        assert client.post(f"{place}/rest/scale?replicas=2").json()["generation"] == 2
        assert rooms.settle("rest").versions[0].ready == 2
        assert client.post(f"{place}/rest/split?weights=v1:5").status_code == 200
        assert client.post(f"{place}/rest/split?weights=v1").json()["error"]["param"] == "weights"
        assert client.post(f"{place}/rest/split?weights=v2:5").status_code == 404
        assert client.post(f"{place}/rest/rollback").json()["error"]["code"] == "deployment_not_found"
        assert "Ready" in {event["reason"] for event in client.get(f"{place}/rest/events").json()}
        assert client.post(place, content="{name: rest2}").json()["error"]["param"] == "run"
        assert "/api/v1/deployments/{name}/scale" in client.get(f"{url}/openapi.json").json()["paths"]
        assert client.delete(f"{place}/rest").status_code == 200
        until(lambda: "rest" not in [item["name"] for item in client.get(place).json()])


def test_the_client_has_the_same_verbs(rooms: DeploymentRoom) -> None:
    root, work = rooms.place.root, str(rooms.work)
    verbs = verbs_with(lambda: DeploymentsClient(root, rooms.environment, work))
    app = make_app(lambda: JobsClient(root, rooms.environment, work), "secret", verbs)
    document = {"name": "far", "run": [sys.executable, "-S", str(SERVER)], "ready": "/ready", "cpus": 0.1}
    with serve(app) as url:
        client = RestJobsClient(url, "secret")
        assert [made.name for made in client.apply_deployments(json.dumps(document))] == ["far"]
        assert rooms.settle("far").address == client.deployment("far").address
        assert client.scale_deployment("far", 2, "v1").generation == 2
        assert client.split_deployment("far", {"v1": 5}).versions[0].weight == 5
        assert client.apply_deployments(json.dumps({**document, "env": {"ANSWER": "two"}}))[0].generation == 4
        assert client.roll_back_deployment("far", 1, "v1", "default").generation == 5
        rooms.settle("far")
        assert "Changed" in {event.reason for event in client.deployment_events("far")}
        with pytest.raises(DeploymentNotFoundError, match="There is no deployment 'fax'"):
            client.deployment("fax")
        assert client.delete_deployment("far").name == "far"
        until(lambda: "far" not in [status.name for status in client.deployments("default")])
