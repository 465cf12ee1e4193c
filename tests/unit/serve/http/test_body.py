"""Bodies: what is wrong with one is a 4xx that says so."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import httpx2
import pytest

from millpond.serve.http.body import MAX_DEPTH, decode_json
from millpond.serve.http.errors import ApiError
from millpond.serve.http.openai.completions import CompletionBody
from millpond.serve.http.openai.fields import UNSUPPORTED

JSON = {"Content-Type": "application/json"}


def refusal(body: bytes) -> ApiError:
    with pytest.raises(ApiError) as caught:
        decode_json(body, CompletionBody, UNSUPPORTED)
    assert caught.value.status == 400
    json.loads(caught.value.json())
    return caught.value


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b'{"prompt": "a",}',
        b'{"prompt": "a"} x',
        b"\xef\xbb\xbf{}",
        b'{"prompt": "\xff\xfe"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "\\udc00\\ud800"}',
        b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "a", "temperature": Infinity}',
        b'{"prompt": "a", "x": ' + b"9" * 5000 + b"}",
        b'{"prompt": "a", "prompt": "b"}',
        b'{"prompt": "a", "x": {"k": 1, "k": 2}}',
        b'{"prompt": "a", "x": ' + b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1) + b"}",
        b'{"prompt": "a", "x": ' + b'{"k":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
        b"[" * 100_000,
        b'{"prompt": "a\x00"}',
    ],
)
def test_what_is_no_json_is_refused(body: bytes) -> None:
    assert refusal(body).body.code == "invalid_json"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"null", None),
        (b"[]", None),
        (b'"text"', None),
        (b"{}", "prompt"),
        (b'{"prompt": 5}', "prompt"),
        (b'{"prompt": null}', "prompt"),
        (b'{"prompt": ["a", 1.5]}', "prompt[1]"),
        (b'{"prompt": "a", "max_tokens": "many"}', "max_tokens"),
        (b'{"prompt": "a", "max_tokens": -1}', "max_tokens"),
        (b'{"prompt": "a", "max_tokens": 1e30}', "max_tokens"),
        (b'{"prompt": "a", "n": 0}', "n"),
        (b'{"prompt": "a", "n": 100000000000000000000000}', "n"),
        (b'{"prompt": "a", "stream": "yes"}', "stream"),
        (b'{"prompt": "a", "temperature": -0.1}', "temperature"),
        (b'{"prompt": "a", "temperature": 1e999}', "temperature"),
        (b'{"prompt": "a", "guided_json": {"maximum": 1e999}}', "guided_json[...]"),
        (b'{"prompt": "a", "top_p": 0}', "top_p"),
        (b'{"prompt": "a", "logprobs": 6}', "logprobs"),
        (b'{"prompt": "a", "stop": [1]}', "stop[0]"),
        (b'{"prompt": "a", "seed": 1.5}', "seed"),
        (b'{"prompt": "a", "stream_options": {"include_usage": 1}}', "stream_options.include_usage"),
    ],
)
def test_a_wrong_type_or_range_is_refused_by_name(body: bytes, param: str | None) -> None:
    assert refusal(body).body.param == param


@pytest.mark.parametrize("name", list(UNSUPPORTED))
def test_what_would_be_lost_silently_is_refused(name: str) -> None:
    error = refusal(json.dumps({"prompt": "a", name: "x"}).encode())
    assert (error.body.param, error.body.code) == (name, "unsupported_parameter")


def test_unsupported_fields_that_ask_for_nothing_pass() -> None:
    body = json.dumps({"prompt": "a", "suffix": None, "use_beam_search": False, "bad_words": []}).encode()
    assert decode_json(body, CompletionBody, UNSUPPORTED).prompt == "a"


def test_unknown_fields_are_ignored() -> None:
    assert decode_json(b'{"prompt": "a", "store": true, "zz": [1]}', CompletionBody, {}).prompt == "a"


def test_nesting_up_to_the_limit_is_read() -> None:
    depth = MAX_DEPTH - 2
    decode_json(b'{"prompt": "a", "x": ' + b"[" * depth + b"]" * depth + b"}", CompletionBody, {})


async def test_a_body_that_is_announced_too_large_is_refused(http: httpx2.AsyncClient) -> None:
    response = await http.post("/v1/completions", content=b" " * ((4 << 20) + 1), headers=JSON)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "request_too_large"


async def test_a_body_that_turns_out_too_large_is_refused(http: httpx2.AsyncClient) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(5):
            yield b" " * (1 << 20)

    response = await http.post("/v1/completions", content=chunks(), headers=JSON)
    assert response.status_code == 413


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""]
)
async def test_only_json_is_read(http: httpx2.AsyncClient, kind: str) -> None:
    response = await http.post("/v1/completions", content=b'{"prompt": "a"}', headers={"Content-Type": kind})
    assert response.status_code == 415
    assert response.json()["error"]["code"] == "unsupported_media_type"


async def test_compressed_bodies_are_refused(http: httpx2.AsyncClient) -> None:
    response = await http.post("/v1/completions", content=b"x", headers={**JSON, "Content-Encoding": "gzip"})
    assert response.status_code == 415


async def test_a_large_body_is_read_as_well(http: httpx2.AsyncClient) -> None:
    body = {"prompt": "a", "ignored": "x" * 100_000, "max_tokens": 1}
    assert (await http.post("/v1/completions", json=body)).status_code == 200
