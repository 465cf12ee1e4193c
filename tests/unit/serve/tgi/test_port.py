"""What the port does around generating: keys, origins, health, metrics, its description, its settings."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from millpond.api.request import ErrorInfo
from millpond.base.errors import ConfigError
from millpond.config.schema import ServeConfig, TgiConfig
from millpond.serve.gateway import Gateway
from millpond.serve.http.tgi.settings import TgiSettings, resolve_tgi
from millpond.serve.keys import ApiKeys
from millpond.serve.settings import ServeSettings, resolve_serve
from tests.support.scripted_engine import ScriptedEngine, make_info

# Every name a dashboard for TGI asks for.
METRICS = """
tgi_request_count tgi_request_success tgi_request_failure tgi_batch_inference_count tgi_batch_inference_success
tgi_batch_inference_failure tgi_batch_concat tgi_request_duration tgi_request_validation_duration
tgi_request_queue_duration tgi_request_inference_duration tgi_request_mean_time_per_token_duration
tgi_request_generated_tokens tgi_request_input_length tgi_request_max_new_tokens tgi_request_skipped_tokens
tgi_batch_inference_duration tgi_batch_forward_duration tgi_batch_decode_duration tgi_batch_filter_duration
tgi_batch_concat_duration tgi_batch_next_size tgi_queue_size tgi_batch_current_size tgi_batch_current_max_tokens
tgi_batch_max_total_tokens
"""


async def test_a_key_is_asked_for_where_tgi_asks_for_one(connect: Any) -> None:
    async with connect(keys=ApiKeys(["secret"])) as client:
        body = {"inputs": "Hello"}
        for path in ("/", "/generate", "/generate_stream", "/v1/chat/completions", "/invocations", "/tokenize"):
            refused = await client.post(path, json=body)
            assert (refused.status_code, refused.content) == (401, b"")
        wrong = {"Authorization": "Bearer wrong"}
        assert (await client.post("/generate", json=body, headers=wrong)).status_code == 401
        right = {"Authorization": "Bearer secret"}
        assert (await client.post("/generate", json=body, headers=right)).status_code == 200
        for path in ("/", "/health", "/ping", "/info", "/metrics", "/docs", "/api-doc/openapi.json", "/v1/models"):
            assert (await client.get(path)).status_code == 200


async def test_pages_of_other_origins_may_call_when_they_are_named(connect: Any) -> None:
    origin = {"Origin": "http://mill.example"}
    async with connect(origins=("http://mill.example",)) as client:
        asked = {**origin, "Access-Control-Request-Method": "POST"}
        preflight = await client.options("/generate", headers=asked)
        assert preflight.headers["access-control-allow-origin"] == "http://mill.example"
        answer = await client.post("/generate", json={"inputs": "Hello"}, headers=origin)
        assert answer.headers["access-control-allow-origin"] == "http://mill.example"
        other = await client.get("/info", headers={"Origin": "http://evil.example"})
        assert "access-control-allow-origin" not in other.headers


async def test_a_name_that_is_not_this_machines_is_refused(tgi: httpx2.AsyncClient) -> None:
    response = await tgi.get("/info", headers={"Host": "evil.example"})
    assert response.status_code == 403


async def test_unknown_routes_and_methods_have_no_body_or_strictly_an_object(
    tgi: httpx2.AsyncClient, strict: httpx2.AsyncClient
) -> None:
    for path, method, status in (("/nowhere", "GET", 404), ("/generate", "GET", 405), ("/info", "POST", 405)):
        response = await tgi.request(method, path)
        assert (response.status_code, response.content) == (status, b"")
        assert set((await strict.request(method, path)).json()) == {"error", "error_type"}


async def test_after_a_failed_generation_health_wants_a_token_first(
    tgi: httpx2.AsyncClient, engine: ScriptedEngine
) -> None:
    assert (await tgi.get("/health")).status_code == 200
    assert engine.requests == []  # a healthy server is not made to work

    engine.stop_at, engine.failure = 0, ErrorInfo("internal_error", "broken")
    assert (await tgi.post("/generate", json={"inputs": "Hello"})).status_code == 424
    unwell = await tgi.get("/health")
    assert (unwell.status_code, unwell.json()) == (503, {"error": "unhealthy", "error_type": "healthcheck"})

    engine.stop_at = None
    assert (await tgi.get("/health")).status_code == 200
    assert engine.requests[-1].params.max_tokens == 1
    num_requests = len(engine.requests)
    assert (await tgi.get("/")).status_code == 200
    assert len(engine.requests) == num_requests


async def test_a_server_that_loads_says_so_on_every_route(gateway: Gateway, tgi: httpx2.AsyncClient) -> None:
    gateway.engine = None
    for response in (await tgi.get("/health"), await tgi.get("/info"), await tgi.post("/generate", json={})):
        assert (response.status_code, response.json()["error_type"]) == (503, "healthcheck")
    assert (await tgi.get("/metrics")).status_code == 200


async def test_metrics_have_tgis_names_and_count(tgi: httpx2.AsyncClient) -> None:
    await tgi.post("/generate", json={"inputs": "Hello"})
    await tgi.post("/generate_stream", json={"inputs": "Hello"})
    await tgi.post("/generate", json={"inputs": ""})

    page = (await tgi.get("/metrics")).text
    declared = {line.split()[2] for line in page.splitlines() if line.startswith("# TYPE")}
    assert set(METRICS.split()) <= declared
    samples = {
        (sample.name, sample.labels.get("err") or sample.labels.get("method")): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }
    assert "tgi_request_success 2\n" in page
    assert samples["tgi_request_generated_tokens_sum", None] == 18
    assert samples["tgi_batch_inference_duration_count", "decode"] == 8
    assert 'tgi_request_failure{err="validation"} 1' in page


async def test_info_tells_the_limits(connect: Any, engine: ScriptedEngine) -> None:
    async with connect(max_total_tokens=100, max_best_of=7) as client:
        info = (await client.get("/info")).json()
    assert info["model_id"] == "tiny"
    assert (info["max_total_tokens"], info["max_input_tokens"], info["max_best_of"]) == (100, 99, 7)
    assert info["router"] == "text-generation-router"


async def test_the_description_names_every_route_that_posts(tgi: httpx2.AsyncClient) -> None:
    document = (await tgi.get("/api-doc/openapi.json")).json()
    assert {"/", "/generate", "/generate_stream", "/v1/chat/completions", "/tokenize"} <= set(document["paths"])
    parameters = document["components"]["schemas"]["Parameters"]["properties"]
    assert {"best_of", "typical_p", "top_n_tokens", "grammar"} <= set(parameters)
    assert "/api-doc/openapi.json" in (await tgi.get("/docs")).text


async def test_texts_and_chats_are_tokenised(tgi: httpx2.AsyncClient) -> None:
    text = "Größe mill"
    tokens = (await tgi.post("/tokenize", json={"inputs": text})).json()
    assert all(token["text"] == text[token["start"] : token["stop"]] for token in tokens)
    assert tokens[-1]["stop"] == len(text)
    assert (await tgi.post("/tokenize", json={"inputs": text, "parameters": {"truncate": 1}})).json() == tokens[-1:]
    chat = (await tgi.post("/chat_tokenize", json={"messages": [{"role": "user", "content": "Hi"}]})).json()
    assert chat["templated_text"] == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert "".join(token["text"] for token in chat["tokenize_response"]) == chat["templated_text"]


async def test_a_longer_total_than_the_engine_holds_is_cut(engine: ScriptedEngine) -> None:
    info = make_info(engine.text, num_blocks=4, block_size=32)
    assert TgiSettings(max_total_tokens=4000).limits(info).max_total_tokens == 129
    assert TgiSettings(max_input_tokens=4000).limits(info).max_input_tokens == 128


@pytest.mark.parametrize(
    ("config", "param"),
    [
        (TgiConfig(max_input_tokens=10, max_total_tokens=10), "tgi.max_input_tokens"),
        (TgiConfig(max_top_n_tokens=21), "tgi.max_top_n_tokens"),
        (TgiConfig(max_stop_sequences=65), "tgi.max_stop_sequences"),
    ],
)
def test_settings_that_do_not_fit_are_refused_at_the_start(config: TgiConfig, param: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_tgi(config, ServeSettings())
    assert caught.value.param == param


def test_settings_that_are_not_given_are_those_of_the_server() -> None:
    serve = resolve_serve(ServeConfig(host="127.0.0.2"))
    settings = resolve_tgi(TgiConfig(cors_allow_origin="a, b", form="strict", api_key="k"), serve)
    assert (settings.host, settings.origins, settings.is_strict) == ("127.0.0.2", ("a", "b"), True)
    assert settings.keys is not None
    assert settings.keys.accepts("k")
