"""Deployments over HTTP, from the first replica to the end."""

from __future__ import annotations

import json
import sys

import httpx

from millpond.jobs.client import JobsClient
from millpond.jobs.deployments.client import DeploymentsClient
from millpond.jobs.deployments.rest import verbs_with
from millpond.jobs.rest import make_app
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
