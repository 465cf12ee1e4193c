"""Hostile clients of the protocols over HTTP: Triton, MindSpore Serving, TGI, OpenAI."""

from __future__ import annotations

import json
import random
import struct
import urllib.parse
from typing import Any, ClassVar

import jsonschema_rs

from tests.integration.openai.hostile import CHAT, COMPLETIONS, hostile_requests
from tests.integration.tgi.test_fuzz import ROUTES, mutated
from tests.support.fuzzing.base import HttpFuzzer
from tests.support.fuzzing.mutation import NAMES, mutate_bytes, mutate_json
from tests.support.fuzzing.rooms import NAME
from tests.support.fuzzing.web import Answer, HttpRequest, ask

FLOATS = [1.5, 2.5, -3.0, 0.0]
CALC = {
    "id": "a",
    "inputs": [
        {"name": "a", "datatype": "FP32", "shape": [1, 4], "data": FLOATS},
        {"name": "b", "datatype": "FP32", "shape": [1, 4], "data": [1, 1, 1, 1]},
    ],
    "outputs": [{"name": "sum", "parameters": {"binary_data": False, "classification": 0}}],
    "parameters": {"priority": 0, "timeout": 0, "sequence_id": 0, "sequence_start": False},
}
ECHO = {
    "inputs": [
        {"name": "IN_TEXT", "datatype": "BYTES", "shape": [1, 2], "data": ["a", "b"]},
        {"name": "IN_X", "datatype": "INT32", "shape": [1, 3], "data": [1, 2, 3]},
    ]
}
REGION = {"key": "/fuzz", "offset": 0, "byte_size": 64}
GENERATE = {"text_input": "The mill", "stream": False, "sampling_parameters": '{"max_tokens": 2}', "max_tokens": 2}


def encode(body: Any) -> bytes:
    return json.dumps(body).encode("utf-8", "surrogatepass")


def quoted(rng: random.Random, name: str) -> str:
    return name if rng.random() < 0.3 else urllib.parse.quote(name, safe="" if rng.random() < 0.5 else "/")


def broken_json(rng: random.Random, good: Any) -> bytes:
    """A body that is mutated as JSON, and now and then as bytes."""
    body = encode(mutate_json(rng, good, rng.choice((0.03, 0.1, 0.3))))
    return mutate_bytes(rng, body) if rng.random() < 0.2 else body


class TritonHttp(HttpFuzzer):
    """Infer in JSON and with raw tensors, generate, repository, shared memory, settings."""

    name = "Triton HTTP"

    def __init__(self, address: str, *, is_strict: bool) -> None:
        # Triton's own are a 500 for a body that is no JSON, and a 501.
        super().__init__(address, frozenset((503,) if is_strict else (500, 501, 503)))
        self._is_strict = is_strict

    def make(self, rng: random.Random) -> HttpRequest:
        pick = rng.random()
        if pick < 0.4:
            model, body = rng.choice((("calc", CALC), ("echo", ECHO)))
            return HttpRequest("POST", f"/v2/models/{model}/infer", broken_json(rng, body))
        if pick < 0.55:
            return self._raw(rng)
        if pick < 0.65:
            way = rng.choice(("generate", "generate_stream"))
            return HttpRequest("POST", f"/v2/models/{NAME}/{way}", broken_json(rng, GENERATE))
        if pick < 0.8:
            return self._names(rng)
        if pick < 0.9:
            action = rng.choice(("register", "unregister", "status"))
            path = f"/v2/{rng.choice(('system', 'cuda'))}sharedmemory/region/{quoted(rng, rng.choice(NAMES))}/{action}"
            body = broken_json(rng, REGION | {"key": rng.choice((*NAMES, "/fuzz"))})
            return HttpRequest("GET" if action == "status" else "POST", path, body)
        path = rng.choice(("/v2/logging", "/v2/trace/setting", "/v2/models/calc/trace/setting"))
        settings = {"log_verbose_level": 0, "log_info": True, "trace_level": ["OFF"], "trace_rate": "1"}
        return HttpRequest("POST", path, broken_json(rng, settings))

    def _raw(self, rng: random.Random) -> HttpRequest:
        parts = [struct.pack("<4f", *FLOATS), struct.pack("<4f", 1, 1, 1, 1)]
        inputs = [
            {"name": name, "datatype": "FP32", "shape": [1, 4], "parameters": {"binary_data_size": 16}}
            for name in ("a", "b")
        ]
        head = broken_json(rng, {"inputs": inputs, "parameters": {"binary_data_output": True}})
        length = rng.choice((len(head), len(head), len(head), 0, -1, len(head) + 32, 2**70, len(head) - 1))
        headers = {"Inference-Header-Content-Length": str(length), "Content-Type": "application/octet-stream"}
        if rng.random() < 0.1:
            headers["Content-Encoding"] = rng.choice(("gzip", "deflate", "br", "", "gzip, gzip"))
        data = b"".join(parts) if rng.random() < 0.6 else mutate_bytes(rng, b"".join(parts))
        return HttpRequest("POST", "/v2/models/calc/infer", head + data, headers)

    def _names(self, rng: random.Random) -> HttpRequest:
        name = quoted(rng, rng.choice(NAMES))
        version = rng.choice(("1", "0", "-1", "99999999999999999999", "x", "1/.."))
        path = rng.choice((
            f"/v2/models/{name}/infer", f"/v2/models/{name}", f"/v2/models/{name}/config", f"/v2/models/calc/{name}",
            f"/v2/models/calc/versions/{version}/infer", f"/v2/models/{name}/versions/{version}", f"/{name}",
            f"/v2/repository/models/{name}/load", f"/v2/repository/models/{name}/unload",
            f"/v2/repository/{name}/index",
            f"/v2/repository/models/{name}/load", f"/v2/models/{name}/stats", f"/v2/{name}", "/v2/repository/index",
        ))  # fmt: skip
        body: Any = CALC if path.endswith("infer") else {"parameters": {}}
        if path.endswith("load") and rng.random() < 0.5:
            body = {"parameters": {"config": "{}", f"file:{rng.choice(NAMES)}": "aGk=", "unload_dependents": False}}
        return HttpRequest(rng.choice(("POST", "POST", "GET", "PUT")), path, broken_json(rng, body))

    def judge(self, request: HttpRequest, answer: Answer) -> None:
        assert answer.status < 500 or answer.status in self.failures
        if answer.headers.get("content-type", "").startswith("text/event-stream"):
            for event in answer.body.decode().split("\n\n"):
                assert not event or isinstance(json.loads(event.removeprefix("data: ")), dict)
        elif answer.status >= 400:
            error = json.loads(answer.body)
            assert list(error) == ["error"]
            assert isinstance(error["error"], str)
            assert "/root" not in error["error"]
            if answer.status == 500:  # Triton's own: a body that is no JSON, or none of the right types
                assert not self._is_strict
                assert "JSON" in error["error"] or "nternal" not in error["error"]
        assert answer.body.find(b"root:x:0") < 0

    async def good(self) -> None:
        answer = await ask(self.address, HttpRequest("POST", "/v2/models/calc/infer", encode(CALC)))
        assert answer.status == 200, answer
        assert json.loads(answer.body)["outputs"][0]["data"] == [2.5, 3.5, -2.0, 1.0]


class MindSporeRest(HttpFuzzer):
    """Instances in JSON, base64 tensors, paths."""

    name = "MindSpore REST"
    GOOD: ClassVar[Any] = {"instances": [{"a": FLOATS, "b": [1.0, 1.0, 1.0, 1.0]}, {"a": FLOATS, "b": FLOATS}]}
    TENSOR: ClassVar[Any] = {"b64": "AADAPwAAIEAAAEDAAAAAAA==", "type": "float32", "shape": [4]}

    def __init__(self, address: str, *, is_strict: bool) -> None:
        super().__init__(address)
        self._is_strict = is_strict

    def make(self, rng: random.Random) -> HttpRequest:
        pick = rng.random()
        if pick < 0.35:
            return HttpRequest("POST", "/model/calc:add", broken_json(rng, self.GOOD))
        if pick < 0.55:
            body = {"instances": [{"a": self.TENSOR, "b": self.TENSOR}]}
            return HttpRequest("POST", "/model/calc/version/1:add", broken_json(rng, body))
        if pick < 0.7:
            body = {"instances": {"left": "a", "right": "b"}}
            return HttpRequest("POST", "/model/calc:join", broken_json(rng, body))
        if pick < 0.8:
            body = {"instances": {"inputs": "The mill", "max_tokens": 2, "temperature": 0.5}}
            path = f"/model/{NAME}:{rng.choice(('generate', 'generated_stream'))}"
            return HttpRequest("POST", path, broken_json(rng, body))
        name, method = quoted(rng, rng.choice(NAMES)), quoted(rng, rng.choice((*NAMES, "add")))
        path = rng.choice((
            f"/model/{name}:{method}", f"/model/calc:{method}", f"/model/{name}/version/{method}:add", f"/{name}",
            f"/model/calc/version/{rng.choice((0, -1, 2**64, 'x', ''))}:add", "/model/calc",
            "/version/1/model/calc:add",
        ))  # fmt: skip
        return HttpRequest(rng.choice(("POST", "POST", "GET")), path, encode(self.GOOD))

    def judge(self, request: HttpRequest, answer: Answer) -> None:
        assert answer.status == 200 or (self._is_strict and (400 <= answer.status < 500 or answer.status == 503))
        if answer.headers["content-type"].startswith("text/event-stream"):
            assert answer.body.endswith(b"data: [DONE]\n\n")
            return
        document = json.loads(answer.body)
        assert set(document) <= {"instances", "error_msg"}
        assert (answer.status == 200) or isinstance(document["error_msg"], str)
        assert b"exception occurred" not in answer.body

    async def good(self) -> None:
        answer = await ask(self.address, HttpRequest("POST", "/model/calc:add", encode(self.GOOD)))
        sums = [[2.5, 3.5, -2.0, 1.0], [3.0, 5.0, -6.0, 0.0]]
        assert json.loads(answer.body) == {"instances": [{"sum": sum} for sum in sums]}


class TgiHttp(HttpFuzzer):
    """All routes with a body, changed in one place or many."""

    name = "TGI HTTP"
    STATUSES = (200, 400, 404, 405, 413, 415, 422, 429, 503)

    def make(self, rng: random.Random) -> HttpRequest:
        path = rng.choice(list(ROUTES))
        if rng.random() < 0.05:
            return HttpRequest(rng.choice(("GET", "POST", "DELETE")), f"/{quoted(rng, rng.choice(NAMES))}", b"{}")
        body = encode(mutated(ROUTES[path], rng))
        return HttpRequest("POST", path, mutate_bytes(rng, body) if rng.random() < 0.15 else body)

    def judge(self, request: HttpRequest, answer: Answer) -> None:
        assert answer.status in self.STATUSES
        kind = answer.headers.get("content-type", "")
        if kind.startswith("text/event-stream"):
            frames = answer.body.decode().removesuffix("data: [DONE]\n\n").split("\n\n")
            events = [json.loads(frame.removeprefix("data:")) for frame in frames if frame and frame[0] != ":"]
            assert all("error" not in event for event in events[:-1])
            kinds = ("validation", "template_error", "overloaded", "tool_error")
            assert events[-1].get("error_type", "validation") in kinds
        elif answer.status == 200 and kind.startswith("application/json"):
            json.loads(answer.body)
        elif kind.startswith("application/json"):
            assert set(json.loads(answer.body)) == {"error", "error_type"}

    async def good(self) -> None:
        body = encode({"inputs": "The mill", "parameters": {"max_new_tokens": 2, "details": True}})
        answer = await ask(self.address, HttpRequest("POST", "/generate", body))
        assert answer.status == 200, answer
        assert json.loads(answer.body)["details"]["generated_tokens"] >= 1


class OpenAi(HttpFuzzer):
    """Bodies written by hand and changed ones."""

    name = "OpenAI"
    COMPLETION: ClassVar[Any] = {
        "model": NAME, "prompt": "The mill", "max_tokens": 2, "temperature": 0.5, "top_p": 0.9, "n": 1, "stop": ["x"],
        "stream": False, "logprobs": 1, "echo": False, "seed": 3, "stream_options": None, "logit_bias": {"5": 1},
    }  # fmt: skip
    MESSAGES: ClassVar[Any] = {
        "model": NAME, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "temperature": 0.5,
        "stream": False, "logprobs": True, "top_logprobs": 1, "response_format": {"type": "text"},
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}],
        "tool_choice": "none",
    }  # fmt: skip

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self._hostile = hostile_requests()
        self._error: Any = None

    def make(self, rng: random.Random) -> HttpRequest:
        pick = rng.random()
        if pick < 0.2:
            path, body = rng.choice(self._hostile)
            return HttpRequest("POST", path, body)
        if pick < 0.3:
            path = rng.choice(("/v1/models/", "/", "/v1/")) + quoted(rng, rng.choice(NAMES))
            return HttpRequest(rng.choice(("GET", "POST", "HEAD")), path)
        path, good = rng.choice(((COMPLETIONS, self.COMPLETION), (CHAT, self.MESSAGES)))
        body = mutate_json(rng, good, rng.choice((0.03, 0.1)))
        if isinstance(body, dict):  # an answer as long as fits is no error, but takes its time
            for name in {"max_tokens", "max_completion_tokens"} - set(body):
                body[name] = 2
        data = encode(body)
        return HttpRequest("POST", path, mutate_bytes(rng, data) if rng.random() < 0.15 else data)

    def judge(self, request: HttpRequest, answer: Answer) -> None:
        assert answer.status < 500 or answer.status == 503
        if request.method == "HEAD":
            return
        kind = answer.headers.get("content-type", "")
        if kind.startswith("text/event-stream"):
            assert answer.body.endswith(b"data: [DONE]\n\n")
        elif answer.status >= 400:
            self._error.validate(json.loads(answer.body))

    async def good(self) -> None:
        if self._error is None:
            document = json.loads((await ask(self.address, HttpRequest("GET", "/openapi.json"))).body)
            schema = {"$ref": "#/components/schemas/ErrorReply", "components": document["components"]}
            self._error = jsonschema_rs.validator_for(schema)
        body = encode({"model": NAME, "prompt": "The mill", "max_tokens": 2, "temperature": 0})
        answer = await ask(self.address, HttpRequest("POST", COMPLETIONS, body))
        assert answer.status == 200, answer
        assert json.loads(answer.body)["usage"]["completion_tokens"] >= 1
