"""The requests over HTTP that are not about tensors: models, versions, settings, repository, memory, heads of HTTP.

Each function makes one request of its kind from a seed; `HTTP` adds those of `triton_corpus`.
"""

from __future__ import annotations

import base64
import gzip
import json
import random
import zlib
from collections.abc import Callable
from typing import Any

from bench.serving.triton_asks import HttpAsk
from bench.serving.triton_corpus import INFER, MODELS, REGION, infer, post
from bench.serving.triton_documents import ODD, Document, simple_document


def versions(rng: random.Random) -> HttpAsk:
    model = rng.choice(["every_version", "newest_version", "some_versions", "nothing"])
    version = rng.choice(["1", "2", "3", "10", "0", "-1", "x", "01", "", "99999999999999999999", "1.0"])
    what = rng.choice(["/infer", "/infer", "/ready", "", "/config"])
    path = f"/v2/models/{model}/versions/{version}{what}"
    if what != "/infer":
        return HttpAsk(f"version {what}", "GET", path)
    return post("version infer", path, {"inputs": [{"name": "IN", "shape": [1], "datatype": "INT32", "data": [1]}]})


def descriptions(rng: random.Random) -> HttpAsk:
    model = rng.choice([*MODELS, "fastertransformer", "custom_identity_int32", "simple_sequence", "priorities"])
    return HttpAsk("description", "GET", f"/v2/models/{model}{rng.choice(['', '/config', '/ready'])}")


def statistics(rng: random.Random) -> HttpAsk:
    return HttpAsk(
        "statistics", "GET", rng.choice(["/v2/models/stats", "/v2/models/counted/stats", "/v2/models/x/stats"])
    )


def routes(rng: random.Random) -> HttpAsk:
    method = rng.choice(["GET", "GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"])
    paths = [
        "/",
        "/v2",
        "/v2/",
        "/v1",
        "/v2/health",
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models",
        "/v2/models/",
    ]
    paths += ["/v2/models/simple/", "/v2/models/simple/infer/", "/v2/models/simple/other", "/v2/models//infer"]
    paths += [
        "/v2//health/live",
        "/v2/health/live?x=1",
        "/v2/models/simple?x=1",
        "/V2",
        "/v2/models/sim%70le",
        "/metrics",
    ]
    paths += [
        "/v2/models/simple/versions",
        "/v2/models/simple/versions/",
        "/v2/models/..%2f..",
        "/v2/repository/index/",
    ]
    paths += ["/v2/repository", "/v2/logging/", "/v2/trace/setting/x", "/v2/models/a/b/c", "/v2/systemsharedmemory"]
    return HttpAsk(f"route {method}", method, rng.choice(paths))


def logging(rng: random.Random) -> HttpAsk:
    names = ["log_info", "log_warning", "log_error", "log_verbose_level", "log_format", "log_file", "other"]
    oddities: list[Any] = [*ODD, "default", "ISO8601", False, 2]
    document = {rng.choice(names): rng.choice(oddities) for _ in range(rng.randint(0, 2))}
    return rng.choice([HttpAsk("logging", "GET", "/v2/logging"), post("logging", "/v2/logging", document)])


def tracing(rng: random.Random) -> HttpAsk:
    path = rng.choice(["/v2/trace/setting", "/v2/models/simple/trace/setting", "/v2/models/nothing/trace/setting"])
    names = ["trace_rate", "trace_count", "log_frequency", "trace_file", "trace_mode", "other"]
    oddities: list[Any] = [*ODD, "100", "-5", "5x", ["7"]]
    document: Document = {rng.choice(names): rng.choice(oddities) for _ in range(rng.randint(0, 2))}
    if rng.random() < 0.3:
        document["trace_level"] = rng.choice([*ODD, ["OFF"], "OFF", ["nothing"]])
    return rng.choice([HttpAsk("trace setting", "GET", path), post("trace setting", path, document)])


def repository(rng: random.Random) -> HttpAsk:
    which = rng.randrange(6)
    if which == 0:
        body: Any = rng.choice([b"", {}, {"ready": True}, {"ready": False}, {"ready": 1}, [], b"{", {"other": 1}])
        return post("index", rng.choice(["/v2/repository/index", "/v2/repository/x/index"]), body)
    model = rng.choice(["automatic", "newest_version", "nothing", "broken", "reshaped", "..", "a%2fb"])
    way = rng.choice(["load", "load", "unload"])
    given: Any = rng.choice([{}, {"config": '{"max_batch_size": 2}'}, {"config": "{"}, {"other": 1}, {"config": 5}])
    if way == "unload":
        given = rng.choice([{}, {"unload_dependents": True}, {"unload_dependents": 1}, {"other": 1}])
    if which == 1:
        given = {"config": '{"backend": "python"}', "file:1/model.py": base64.b64encode(b"x = ").decode()}
    document: Any = rng.choice([{"parameters": given}, {"parameters": given}, b"", {}, {"parameters": 5}, b"{"])
    return post(f"{way} {model}", f"/v2/repository/models/{model}/{way}", document)


def memory(rng: random.Random) -> HttpAsk:
    kind = rng.choice(["system"] * 5 + ["cuda"])
    region = rng.choice(["/region/a", "/region/b", "/region/missing"])
    way = rng.choice(["/status", "/register", "/register", "/unregister"])
    if way == "/status" or rng.random() < 0.1:
        return HttpAsk("memory", "GET", f"/v2/{kind}sharedmemory{rng.choice(['', region])}/status")
    document: Any = {
        "key": rng.choice([f"/{REGION}"] * 3 + ["/none", "", 5]),
        "byte_size": rng.choice([128, 256, 512, 0]),
    }
    if rng.random() < 0.5:
        document["offset"] = rng.choice([0, 128, -1, 1 << 40, "0"])
    if rng.random() < 0.2:
        document.pop(rng.choice(["key", "byte_size"]))
    return post("memory", f"/v2/{kind}sharedmemory{region}{way}", {} if way == "/unregister" else document)


def memory_infer(rng: random.Random) -> HttpAsk:
    """Inputs in the first half of the region that the corpus registers, outputs in the second."""

    def place(offset: object, size: object, name: object = "main") -> Document:
        return {"shared_memory_region": name, "shared_memory_offset": offset, "shared_memory_byte_size": size}

    document = simple_document(rng)
    for index, entry in enumerate(document["inputs"]):
        del entry["data"]
        entry["parameters"] = place(64 * index, 64)
    document["outputs"] = [{"name": f"OUTPUT{index}", "parameters": place(128 + 64 * index, 64)} for index in range(2)]
    if rng.random() < 0.6:
        spot = rng.choice(document["inputs"] + document["outputs"])
        size = rng.choice([63, 65, 0, 1 << 40, -1, "64", None])
        spot["parameters"] = rng.choice([place(0, size), place(rng.choice([250, -1, "x"]), 64), place(0, 64, "gone")])
    ask = infer("memory infer", "simple", document)
    return HttpAsk(ask.kind, ask.method, ask.path, ask.headers, ask.body, region=REGION)


def codings(rng: random.Random) -> HttpAsk:
    text = json.dumps(simple_document(rng)).encode()
    name, body = rng.choice(
        [
            ("gzip", gzip.compress(text)),
            ("deflate", zlib.compress(text)),
            ("gzip", text),
            ("gzip", gzip.compress(text)[:-9]),
            ("br", text),
            ("identity", text),
            ("deflate", gzip.compress(text)),
            ("gzip", b""),
        ]
    )
    headers = [] if rng.random() < 0.3 else [("Content-Encoding", name)]
    if rng.random() < 0.6 or not headers:
        headers.append(
            ("Accept-Encoding", rng.choice(["gzip", "deflate", "gzip, deflate", "*", "br", "gzip;q=0.1", ""]))
        )
        body = body if len(headers) > 1 else text
    return infer("coding", "simple", body, *headers)


def headers(rng: random.Random) -> HttpAsk:
    """Heads that say something wrong."""
    body = json.dumps(simple_document(rng)).encode()
    path = "/v2/models/simple/infer"
    start = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n".encode()
    heads = [b"Content-Length: %d" % len(body), b"Content-Length: 5", b"Content-Length: 0", b"Content-Length: x"]
    heads += [b"Content-Length: -1", b"Content-Type: text/plain\r\nContent-Length: %d" % len(body), b"Bad Header"]
    heads += [b"Transfer-Encoding: chunked", b"Expect: 100-continue\r\nContent-Length: %d" % len(body), b""]
    head = rng.choice(heads)
    if b"chunked" in head:
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    return HttpAsk("header", "POST", path, raw=start + head + (b"\r\n" if head else b"") + b"\r\n" + body)


HTTP: tuple[tuple[Callable[[random.Random], HttpAsk], int], ...] = (
    *INFER,
    (versions, 5),
    (descriptions, 4),
    (statistics, 1),
    (routes, 6),
    (logging, 4),
    (tracing, 4),
    (repository, 4),
    (memory, 4),
    (memory_infer, 3),
    (codings, 3),
    (headers, 2),
)
