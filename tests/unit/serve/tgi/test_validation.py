"""TGI's validation: every text and status, and what the strict form does otherwise."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

PREFIX = "Input validation error: "
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"best_of": 3, "do_sample": True}, "`best_of` must be > 0 and <= 2. Given: 3"),
    ({"best_of": 0}, "`best_of` must be > 0 and <= 2. Given: 0"),
    ({"best_of": 2}, "you must use sampling when `best_of` is > 1"),
    ({"best_of": 2, "do_sample": True, "seed": 1}, "`seed` must not be set when `best_of` > 1"),
    ({"temperature": 0}, "`temperature` must be strictly positive"),
    ({"temperature": -1.5}, "`temperature` must be strictly positive"),
    ({"repetition_penalty": 0}, "`repetition_penalty` must be strictly positive"),
    ({"frequency_penalty": 2.5}, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
    ({"top_p": 1}, "`top_p` must be > 0.0 and < 1.0"),
    ({"top_p": 0}, "`top_p` must be > 0.0 and < 1.0"),
    ({"typical_p": 1.5}, "`typical_p` must be > 0.0 and < 1.0"),
    ({"top_k": 0}, "`top_k` must be strictly positive"),
    ({"top_k": -4}, "`top_k` must be strictly positive"),
    ({"max_new_tokens": 0}, "`max_new_tokens` must be strictly positive"),
    ({"stop": list("abcde")}, "`stop` supports up to 4 stop sequences. Given: 5"),
    ({"truncate": 0}, "`truncate` must be strictly positive and less than 511. Given: 0"),
    ({"truncate": 512}, "`truncate` must be strictly positive and less than 511. Given: 512"),
    ({"seed": 2**64}, "`seed` must be less than 2^64"),
    ({"top_n_tokens": 6}, "`top_n_tokens` must be >= 0 and <= 5. Given: 6"),
    ({"watermark": True}, "`watermark` is not supported: this server does not mark its text"),
    ({"adapter_id": "mine"}, "`adapter_id` is not supported: this server serves one model without adapters"),
    (
        {"max_new_tokens": 512},
        "`inputs` tokens + `max_new_tokens` must be <= 512. Given: 1 `inputs` tokens and 512 `max_new_tokens`",
    ),
    ({"grammar": {"type": "json", "value": {}}}, "grammar is not valid: Grammar must have a 'properties' field"),
    ({"grammar": {"type": "json", "value": 3}}, "grammar is not supported"),
    ({"grammar": {"type": "regex", "value": 3}}, "grammar is not valid: a regex is a text"),
    (
        {"grammar": {"type": "json_schema", "value": {"name": "x"}}},
        "grammar is not valid: a json_schema has a 'schema', which is an object",
    ),
]


@pytest.mark.parametrize(("parameters", "told"), REFUSED)
async def test_each_range_has_its_text(tgi: httpx2.AsyncClient, parameters: dict[str, Any], told: str) -> None:
    response = await tgi.post("/generate", json={"inputs": "Hello", "parameters": parameters})
    assert response.status_code == 422
    assert response.json() == {"error": PREFIX + told, "error_type": "validation"}


async def test_prompts_that_are_empty_or_too_long_are_refused(tgi: httpx2.AsyncClient, connect: Any) -> None:
    response = await tgi.post("/generate", json={"inputs": ""})
    assert response.json()["error"] == PREFIX + "`inputs` cannot be empty"
    async with connect(max_input_tokens=3) as client:
        body = {"inputs": "Hello there, miller.", "parameters": {"max_new_tokens": 4}}
        error = (await client.post("/generate", json=body)).json()["error"]
    assert error == PREFIX + "`inputs` must have less than 3 tokens. Given: 8"


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"best_of": 2, "do_sample": True}, "`best_of` != 1 is not supported when streaming tokens"),
        ({"decoder_input_details": True}, "`decoder_input_details` == true is not supported when streaming tokens"),
    ],
)
async def test_streams_refuse_what_only_comes_at_the_end(
    tgi: httpx2.AsyncClient, parameters: dict[str, Any], told: str
) -> None:
    response = await tgi.post("/generate_stream", json={"inputs": "Hello", "parameters": parameters})
    assert response.text.startswith('data:{"error":"' + PREFIX + told)


@pytest.mark.parametrize("parameters", [{"temperature": 0}, {"top_p": 1}, {"typical_p": 1}])
async def test_the_strict_form_takes_what_others_call_a_default(
    strict: httpx2.AsyncClient, parameters: dict[str, Any]
) -> None:
    assert (await strict.post("/generate", json={"inputs": "Hello", "parameters": parameters})).status_code == 200


async def test_grammars_and_best_of_can_be_switched_off(connect: Any) -> None:
    async with connect(has_grammar=False, max_best_of=1) as client:
        grammar = {"grammar": {"type": "regex", "value": "a"}}
        refused = await client.post("/generate", json={"inputs": "Hello", "parameters": grammar})
        assert refused.json()["error"] == PREFIX + "grammar is not supported"
        refused = await client.post("/generate", json={"inputs": "Hello", "parameters": {"best_of": 2}})
        assert refused.json()["error"] == PREFIX + "`best_of` != 1 is not allowed for this endpoint"


@pytest.mark.parametrize("value", ["(", "a{2,1}"])
async def test_a_regex_that_cannot_be_compiled_is_refused(tgi: httpx2.AsyncClient, value: str) -> None:
    body = {"inputs": "Hello", "parameters": {"grammar": {"type": "regex", "value": value}}}
    response = await tgi.post("/generate", json=body)
    assert response.status_code == 422
    assert response.json()["error"].startswith(PREFIX + "grammar is not valid: ")


@pytest.mark.parametrize(
    ("content", "headers", "status", "beginning"),
    [
        (b"{}", {}, 415, "Expected request with `Content-Type: application/json`"),
        (b"{", {"content-type": "application/json"}, 400, "Failed to parse the request body as JSON: "),
        (b"{}", {"content-type": "application/json"}, 422, "Failed to deserialize the JSON body into the target type"),
        (
            b'{"inputs": "x", "parameters": null}',
            {"content-type": "application/json"},
            422,
            "Failed to deserialize the JSON body into the target type",
        ),
        (b" " * 2_000_001, {"content-type": "application/json"}, 413, "Failed to buffer the request body: length"),
    ],
)
async def test_what_is_no_body_is_plain_text_or_strictly_an_object(
    tgi: httpx2.AsyncClient,
    strict: httpx2.AsyncClient,
    content: bytes,
    headers: dict[str, str],
    status: int,
    beginning: str,
) -> None:
    compatible = await tgi.post("/generate", content=content, headers=headers)
    proper = await strict.post("/generate", content=content, headers=headers)
    assert (compatible.status_code, proper.status_code) == (status, status)
    assert compatible.headers["content-type"].startswith("text/plain")
    assert compatible.text.startswith(beginning)
    assert set(proper.json()) == {"error", "error_type"}
