"""What can be read without generating: the OpenAPI document, health, metrics, models and the chat page's files."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx2
import jsonschema_rs
import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette

from millpond.serve.http.app import ROUTES, make_app
from millpond.serve.http.openai.chat_fields import ChatBody
from millpond.serve.http.openai.completions import CompletionBody
from millpond.serve.settings import ServeSettings
from tests.support.scripted_engine import MODEL, ScriptedEngine

PAGE = Path(__file__).parents[4] / "src/millpond/serve/http/page"


async def document(http: httpx2.AsyncClient) -> dict[str, Any]:
    return dict((await http.get("/openapi.json")).json())


def schema_of(openapi: dict[str, Any], name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}", "components": openapi["components"]}


async def test_every_api_route_is_in_the_document(http: httpx2.AsyncClient) -> None:
    paths = (await document(http))["paths"]
    expected = {route.path for route in ROUTES if not route.path.startswith("/page") and route.path != "/"}
    assert set(paths) == expected - {"/openapi.json"}


@pytest.mark.parametrize(("name", "kind"), [("ChatBody", ChatBody), ("CompletionBody", CompletionBody)])
async def test_the_document_has_every_field_that_is_read(http: httpx2.AsyncClient, name: str, kind: type) -> None:
    schema = (await document(http))["components"]["schemas"][name]
    assert set(schema["properties"]) == {field.encode_name for field in msgspec.structs.fields(kind)}


@pytest.mark.parametrize(
    ("path", "body", "schema"),
    [
        ("/v1/completions", {"prompt": "a", "logprobs": 1, "prompt_logprobs": 1}, "CompletionReply"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "logprobs": True}, "ChatReply"),
        ("/v1/completions", {"prompt": 5}, "ErrorReply"),
    ],
)
async def test_replies_are_what_the_document_says(
    http: httpx2.AsyncClient, path: str, body: dict[str, Any], schema: str
) -> None:
    validator = jsonschema_rs.validator_for(schema_of(await document(http), schema))
    validator.validate((await http.post(path, json=body)).json())


@pytest.mark.parametrize(
    ("path", "schema"),
    [("/v1/models", "ModelList"), ("/v1/models/tiny", "ModelCard"), ("/health", "Health"), ("/ready", "Readiness")],
)
async def test_pages_are_what_the_document_says(http: httpx2.AsyncClient, path: str, schema: str) -> None:
    validator = jsonschema_rs.validator_for(schema_of(await document(http), schema))
    validator.validate((await http.get(path)).json())


async def test_the_served_model_is_listed_with_its_length(http: httpx2.AsyncClient) -> None:
    (card,) = (await http.get("/v1/models")).json()["data"]
    assert (card["id"], card["object"], card["max_model_len"]) == (MODEL, "model", 512)
    assert (await http.get(f"/v1/models/{MODEL}")).json() == card


@pytest.mark.parametrize("name", ["other", "a/b", "tiny/", "%00", "é"])
async def test_another_model_is_not_found(http: httpx2.AsyncClient, name: str) -> None:
    response = await http.get(f"/v1/models/{name}")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


async def test_the_metrics_page_can_be_scraped(http: httpx2.AsyncClient) -> None:
    await http.post("/v1/completions", json={"prompt": "a"})
    response = await http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    names = {family.name for family in text_string_to_metric_families(response.text)}
    assert {"millpond_http_requests", "millpond_request_time_to_first_token_seconds"} <= names


async def test_a_loading_server_lives_and_is_not_ready() -> None:
    app = make_app(None, ServeSettings())
    app.state.gateway.load_stage, app.state.gateway.load_fraction = "weights", 0.5
    async with client(app) as http:
        assert (await http.get("/health")).status_code == 200
        ready = await http.get("/ready")
        assert ready.status_code == 503
        assert ready.json() == {"status": "loading", "model": None, "stage": "weights", "fraction": 0.5}
        for path in ("/v1/models", "/v1/models/x"):
            assert (await http.get(path)).status_code == 503
        response = await http.post("/v1/completions", json={"prompt": "a"})
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) > 0
    assert response.json()["error"]["type"] == "overloaded_error"


async def test_a_draining_server_takes_nothing_new(app: Starlette, http: httpx2.AsyncClient) -> None:
    app.state.gateway.draining = True
    assert (await http.get("/ready")).json()["status"] == "draining"
    assert (await http.post("/v1/completions", json={"prompt": "a"})).status_code == 503


async def test_a_restarting_engine_is_not_ready_and_takes_requests(
    http: httpx2.AsyncClient, engine: ScriptedEngine
) -> None:
    engine.state = "restarting"
    assert (await http.get("/ready")).status_code == 503
    assert (await http.post("/v1/completions", json={"prompt": "a"})).status_code == 200


def client(app: Starlette) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://localhost")


class References(HTMLParser):
    """Everything a page would load, and everything a strict policy forbids."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.inline: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.loaded += [given[name] or "" for name in ("src", "href") if name in given and tag != "use"]
        self.inline += [name for name in given if name.startswith("on") or name == "style"]
        if tag == "style" or (tag == "script" and "src" not in given):
            self.inline.append(tag)


async def test_the_page_loads_nothing_from_elsewhere_and_runs_nothing_inline(http: httpx2.AsyncClient) -> None:
    response = await http.get("/")
    references = References()
    references.feed(response.text)
    assert references.inline == []
    for target in references.loaded:
        assert target.startswith("data:image/") or (await http.get(target)).status_code == 200
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


async def test_everything_the_scripts_import_is_served(http: httpx2.AsyncClient) -> None:
    for file in PAGE.glob("*.js"):
        for name in re.findall(r'from "\./([\w.]+)"', file.read_text()):
            response = await http.get(f"/page/{name}")
            assert response.status_code == 200
            assert response.headers["content-type"].startswith("text/javascript")


@pytest.mark.parametrize("path", ["/page/", "/page/x.js", "/page/..%2fapp.py", "/page/../app.py", "/index.html"])
async def test_no_other_file_is_served(http: httpx2.AsyncClient, path: str) -> None:
    assert (await http.get(path)).status_code == 404


@pytest.mark.parametrize("file", sorted(PAGE.glob("*.js")), ids=lambda file: file.name)
def test_no_script_turns_text_into_markup(file: Path) -> None:
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", file.read_text()
    )
