"""The outermost ring: hosts, keys, headers, ids, counts, bugs."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx2
import pytest
from starlette.applications import Starlette

from millpond.serve.http.app import ROUTES, make_app
from millpond.serve.keys import ApiKeys
from millpond.serve.settings import ServeSettings
from tests.support.scripted_engine import ScriptedEngine


def client(app: Starlette, base_url: str = "http://localhost") -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url=base_url)


@pytest.fixture
async def locked(engine: ScriptedEngine) -> AsyncIterator[httpx2.AsyncClient]:
    async with client(make_app(engine, ServeSettings(keys=ApiKeys(["sk-right", "sk-other"])))) as http:
        yield http


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8000", "127.0.0.1:1", "[::1]:80", "LOCALHOST.", "a.localhost"]
)
async def test_names_of_this_machine_are_answered(http: httpx2.AsyncClient, host: str) -> None:
    assert (await http.get("/health", headers={"Host": host})).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "192.168.1.7", ""])
async def test_foreign_names_are_refused_on_loopback(http: httpx2.AsyncClient, host: str) -> None:
    response = await http.get("/v1/models", headers={"Host": host})
    assert response.status_code == 403
    assert response.json()["error"]["code"] == "host_not_allowed"


async def test_a_host_that_is_given_twice_is_refused(http: httpx2.AsyncClient) -> None:
    response = await http.get("/health", headers=[("Host", "localhost"), ("Host", "evil.example")])
    assert response.status_code == 400


async def test_any_name_is_answered_when_bound_to_the_network(engine: ScriptedEngine) -> None:
    async with client(make_app(engine, ServeSettings(host="0.0.0.0"))) as http:
        assert (await http.get("/health", headers={"Host": "mill.example"})).status_code == 200


@pytest.mark.parametrize("key", ["sk-right", "sk-other"])
async def test_a_right_key_opens_the_api(locked: httpx2.AsyncClient, key: str) -> None:
    response = await locked.get("/v1/models", headers={"Authorization": f"Bearer {key}"})
    assert response.status_code == 200


@pytest.mark.parametrize("given", [None, "", "Bearer", "Bearer ", "Bearer sk-wrong", "Basic sk-right", "sk-right"])
async def test_a_wrong_key_does_not(locked: httpx2.AsyncClient, given: str | None) -> None:
    response = await locked.get("/v1/models", headers={} if given is None else {"Authorization": given})
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/", "/page/app.js", "/openapi.json"])
async def test_what_is_not_the_api_needs_no_key(locked: httpx2.AsyncClient, path: str) -> None:
    assert (await locked.get(path)).status_code == 200


async def test_an_unknown_url_is_a_404_with_the_error_object(http: httpx2.AsyncClient) -> None:
    response = await http.post("/v1/embeddings", json={})
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "unknown_url"
    assert "POST /v1/embeddings" in response.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_a_wrong_method_is_a_405_that_names_the_right_one(http: httpx2.AsyncClient, path: str) -> None:
    response = await http.get(path)
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    assert response.json()["error"]["code"] == "method_not_allowed"


async def test_no_other_site_may_use_it_from_a_browser(http: httpx2.AsyncClient) -> None:
    headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    response = await http.options("/v1/completions", headers=headers)
    assert response.status_code == 405
    assert not [name for name in response.headers if name.startswith("access-control")]


@pytest.mark.parametrize("path", [route.path.replace("{id}", "tiny") for route in ROUTES if route.method == "GET"])
async def test_every_response_forbids_what_it_does_not_need(http: httpx2.AsyncClient, path: str) -> None:
    response = await http.get(path)
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["x-frame-options"] == "DENY"
    assert "default-src 'none'" in response.headers["content-security-policy"]


async def test_a_request_id_is_kept(http: httpx2.AsyncClient) -> None:
    response = await http.get("/health", headers={"X-Request-Id": "trace:1.a-b"})
    assert response.headers["x-request-id"] == "trace:1.a-b"


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "caf\xe9"])
async def test_a_bad_request_id_is_replaced(http: httpx2.AsyncClient, given: str) -> None:
    response = await http.get("/health", headers={"X-Request-Id": given.encode("latin-1")})
    assert len(response.headers["x-request-id"]) == 32


async def test_responses_are_counted_by_route_and_status(app: Starlette, http: httpx2.AsyncClient) -> None:
    for path in ("/health", "/health", "/a", "/b", "/v1/models/tiny", "/v1/models/other"):
        await http.get(path)
    counted = app.state.gateway.metrics.http_requests
    assert counted.value("/health", "200") == 2
    assert counted.value("other", "404") == 2
    assert counted.value("/v1/models/{id}", "200") == 1
    assert counted.value("/v1/models/{id}", "404") == 1


async def test_a_bug_is_a_500_that_tells_nothing(
    http: httpx2.AsyncClient, engine: ScriptedEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.refusal = ZeroDivisionError("a secret")
    response = await http.post("/v1/completions", json={"prompt": "a"})
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert "secret" not in response.text
    assert "a secret" in caplog.text
