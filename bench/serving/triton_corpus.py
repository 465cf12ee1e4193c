"""The infer requests over HTTP that are sent to a real Triton and to Millpond: good, odd and broken ones, from a seed.

Each function makes one request of its kind. Knows `triton_models`' models; `triton_corpus_server` has the rest of HTTP,
`triton_corpus_grpc` the other half.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.serving.triton_asks import HttpAsk
from bench.serving.triton_documents import (
    FAULTS,
    ODD,
    Document,
    broken_text,
    identity_document,
    simple_document,
    values,
)
from bench.serving.triton_models import TYPES

LENGTH = "Inference-Header-Content-Length"
BINARY = ("Content-Type", "application/octet-stream")
REGION = "differential_of_servers"
MODELS = ("simple", "id_fp32", "ens", "chain", "no_batch", "automatic", "llm", "classes", "err", "nothing", "broken")
_NUMPY = {"FP16": "f2", "FP32": "f4", "FP64": "f8", "BOOL": "?", "INT8": "i1", "INT16": "i2", "INT32": "i4"}
_NUMPY |= {"INT64": "i8", "UINT8": "u1", "UINT16": "u2", "UINT32": "u4", "UINT64": "u8"}


def post(kind: str, path: str, document: Any, *headers: tuple[str, str]) -> HttpAsk:
    """Returns a request with a JSON body."""
    body = document if isinstance(document, bytes) else json.dumps(document, ensure_ascii=False).encode()
    return HttpAsk(kind, "POST", path, headers, body)


def infer(kind: str, model: str, document: Any, *headers: tuple[str, str]) -> HttpAsk:
    """Returns an infer request."""
    return post(kind, f"/v2/models/{model}/infer", document, *headers)


def raw(datatype: str, items: list[Any]) -> bytes:
    """Returns elements as bytes of the wire."""
    if datatype == "BYTES":
        return b"".join(struct.pack("<I", len(item.encode())) + item.encode() for item in items)
    return np.array(items, dtype=_NUMPY[datatype]).tobytes()


def in_binary(document: Document) -> tuple[bytes, bytes]:
    """Moves the data of a document's inputs behind it."""
    tail = b""
    for entry in document["inputs"]:
        flat = np.array(entry.pop("data"), dtype=object).reshape(-1).tolist()
        data = raw(entry["datatype"], flat)
        entry.setdefault("parameters", {})["binary_data_size"] = len(data)
        tail += data
    return json.dumps(document).encode(), tail


def json_types(rng: random.Random) -> HttpAsk:
    datatype = rng.choice([name for name in TYPES if name != "FP16"])
    return infer(f"json {datatype}", f"id_{datatype.lower()}", identity_document(datatype, rng))


def json_simple(rng: random.Random) -> HttpAsk:
    return infer("json simple", "simple", simple_document(rng, rng.randint(1, 8)))


def json_fault(rng: random.Random) -> HttpAsk:
    document = simple_document(rng)
    index = rng.randrange(len(FAULTS))
    FAULTS[index](document, rng)
    return infer(f"json fault {index}", "simple", document)


def json_broken(rng: random.Random) -> HttpAsk:
    return infer("json broken", "simple", broken_text(json.dumps(simple_document(rng)).encode(), rng))


def json_elements(rng: random.Random) -> HttpAsk:
    """One odd element in a tensor of any datatype."""
    datatype = rng.choice([*TYPES, "BF16"])
    data: list[Any] = values("INT32" if datatype == "BF16" else datatype, 3, rng)
    data[rng.randrange(3)] = rng.choice(ODD)
    document = {"inputs": [{"name": "IN", "shape": [1, 3], "datatype": datatype, "data": data}]}
    model = "id_fp32" if datatype == "BF16" else f"id_{datatype.lower()}"
    return infer(f"json element {datatype}", model, document)


def binary_types(rng: random.Random) -> HttpAsk:
    datatype = rng.choice(list(TYPES))
    document = identity_document(datatype, rng)
    if rng.random() < 0.5:
        document["parameters"] = {"binary_data_output": rng.random() < 0.7}
    if rng.random() < 0.5:
        document["outputs"] = [{"name": "OUT", "parameters": {"binary_data": rng.random() < 0.6}}]
    head, tail = in_binary(document)
    return infer(f"binary {datatype}", f"id_{datatype.lower()}", head + tail, (LENGTH, str(len(head))), BINARY)


def binary_fault(rng: random.Random) -> HttpAsk:
    document = simple_document(rng)
    head, tail = in_binary(document)
    length: object = len(head)
    which = rng.randrange(8)
    if which == 0:
        tail = tail[: rng.randrange(len(tail))]
    elif which == 1:
        tail += b"more"
    elif which == 2:
        length = rng.choice([0, 1, -1, len(head) - 1, len(head) + 1, len(head) + len(tail) + 1, "x", "", 1 << 40, "1x"])
    elif which in (3, 4):
        size = rng.choice([0, 63, 65, 128, -1, "64", 1.5, None, 1 << 40, True])
        document["inputs"][rng.randrange(2)]["parameters"]["binary_data_size"] = size
        head = json.dumps(document).encode()
        length = len(head)
    elif which == 5:
        document["inputs"][0]["data"] = [1] * 16
        head = json.dumps(document).encode()
        length = len(head)
    elif which == 6:
        document["inputs"][0]["shape"] = rng.choice([[16], [1, 8], [2, 16], [1, -16]])
        head = json.dumps(document).encode()
        length = len(head)
    else:
        head = broken_text(head, rng)
        length = len(head)
    return infer(f"binary fault {which}", "simple", head + tail, (LENGTH, str(length)), BINARY)


def binary_text(rng: random.Random) -> HttpAsk:
    """BYTES whose lengths are wrong."""
    data = rng.choice([b"", b"\x01", b"\x05\0\0\0abc", b"\xff\xff\xff\xff", b"\x01\0\0\0a\x01\0\0\0b", b"\x01\0\0\0ab"])
    entry = {"name": "IN", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"inputs": [entry]}).encode()
    return infer("binary text", "id_bytes", head + data, (LENGTH, str(len(head))), BINARY)


def raw_body(rng: random.Random) -> HttpAsk:
    model, data = rng.choice(
        [
            ("id_fp32", raw("FP32", [1.0, 2.5])),
            ("id_fp32", b"abc"),
            ("simple", bytes(128)),
            ("parameters", raw("INT32", [5])),
            ("no_batch", raw("INT32", [1, 2, 3, 4])),
            ("id_bytes", b"hello"),
            ("id_int8", b"\1\2\3"),
            ("reshaped", raw("INT32", [7])),
        ]
    )
    return infer("raw body", model, data, (LENGTH, "0"), BINARY)


def classification(rng: random.Random) -> HttpAsk:
    """Never of BYTES: that ends the real server."""
    count: Any = rng.choice([0, 1, 2, 3, 6, 7, 100, -1, "1", 1.0])
    document: Document = {"outputs": [{"name": "OUT", "parameters": {"classification": count}}]}
    if rng.random() < 0.5:
        data = [rng.choice([0.5, 1.25, -3.0, 8.0, 2.0]) for _ in range(6)]
        document["inputs"] = [{"name": "IN", "shape": [2, 3], "datatype": "FP32", "data": data}]
        return infer("classification", "classes", document)
    datatype = rng.choice(["INT32", "UINT8", "INT64", "FP64", "BOOL"])
    entry = {"name": "IN", "shape": [2, 4], "datatype": datatype, "data": values(datatype, 8, rng)}
    document["inputs"] = [entry]
    if rng.random() < 0.3:
        document["outputs"][0]["parameters"]["binary_data"] = True
    return infer(f"classification {datatype}", f"id_{datatype.lower()}", document)


def parameters(rng: random.Random) -> HttpAsk:
    names = ["mine", "priority", "timeout", "a b", "", "triton_x", "binary_data_output", "headers_x"]
    given = {rng.choice(names): rng.choice(ODD) for _ in range(rng.randint(1, 3))}
    document = {"inputs": [{"name": "IN", "shape": [1], "datatype": "INT32", "data": [1]}], "parameters": given}
    if rng.random() < 0.5:
        document["id"] = "r1"  # type: ignore[assignment]  # a document holds anything
    return infer("parameters", "parameters", document)


def priorities(rng: random.Random) -> HttpAsk:
    value: Any = rng.choice([0, 1, 2, 3, 4, -1, "2", 1 << 33])
    entry = {"name": "IN", "shape": [1, 2], "datatype": "INT32", "data": [1, 2]}
    return infer("priority", "priorities", {"inputs": [entry], "parameters": {"priority": value, "timeout": 10**7}})


def ensembles(rng: random.Random) -> HttpAsk:
    if rng.random() < 0.5:
        shape = rng.choice([[1, 16], [8, 16], [9, 16], [1, 15], [16]])
        entry = {"name": "X", "shape": shape, "datatype": "INT32", "data": [3] * int(np.prod(shape))}
        return infer("ensemble", "ens", {"inputs": [entry], **rng.choice([{}, {"id": "e"}])})
    shape = rng.choice([[1, 4], [4, 2], [5, 2], [1, 0]])
    entry = {"name": "IN", "shape": shape, "datatype": "INT32", "data": [3] * int(np.prod(shape))}
    return infer("ensemble", "chain", {"inputs": [entry], "outputs": [{"name": rng.choice(["OUT", "OUT", "first"])}]})


def shapes(rng: random.Random) -> HttpAsk:
    """Models without batches, with reshapes, with optional inputs."""
    model = rng.choice(["no_batch", "reshaped", "optional", "automatic", "fastertransformer"])
    shape = rng.choice([[2, 2], [2, 0], [1], [1, 1], [4, 1], [5, 1], [3], [1, 3], [], [2, 1, 1]])
    names = {"fastertransformer": ["input_ids", "input_lengths", "request_output_len"], "optional": ["IN", "IN_B"]}
    kinds = {"fastertransformer": ["UINT32"] * 3, "optional": ["FP32", "INT32"]}
    entries = []
    for name, datatype in zip(names.get(model, ["IN"]), kinds.get(model, ["INT32"]), strict=True):
        if rng.random() < 0.85:
            data = [2] * int(np.prod(shape))
            entries.append({"name": name, "shape": shape, "datatype": datatype, "data": data})
    return infer(f"shapes {model}", model, {"inputs": entries})


def model_errors(rng: random.Random) -> HttpAsk:
    code = rng.choice([*range(8), 100])
    model = rng.choice(["err", "err", "err", "broken"])
    return infer(
        "model error",
        model,
        {"id": "5", "inputs": [{"name": "CODE", "shape": [1], "datatype": "INT32", "data": [code]}]},
    )


def generate(rng: random.Random) -> HttpAsk:
    way = rng.choice(["generate", "generate_stream"])
    model = rng.choice(["llm"] * 6 + ["simple", "parameters", "id_int32", "nothing", "id_bytes"])
    document: Any = {"text_input": rng.choice(["hi", "boom", "ü"]), "max_tokens": rng.choice([0, 1, 1, 2, 3])}
    which = rng.randrange(8)
    odd = {rng.choice(["text_input", "max_tokens", "stream", "id", "other", "parameters"]): rng.choice(ODD)}
    if which < 3:
        document |= odd
    elif which == 3:
        document = {"IN": rng.choice([1, [1, 2], "x", None, 1.5, [], [[1]]])}
    elif which == 4:
        document = broken_text(json.dumps(document).encode(), rng)
    elif which == 5:
        document["parameters"] = {"a": rng.choice(ODD), "temperature": 0.5}
    return post(f"{way} {model}", f"/v2/models/{model}/{way}", document)


INFER: tuple[tuple[Callable[[random.Random], HttpAsk], int], ...] = (
    (json_types, 10),
    (json_simple, 5),
    (json_fault, 24),
    (json_broken, 6),
    (json_elements, 8),
    (binary_types, 8),
    (binary_fault, 9),
    (binary_text, 2),
    (raw_body, 2),
    (classification, 5),
    (parameters, 4),
    (priorities, 2),
    (ensembles, 3),
    (shapes, 4),
    (model_errors, 3),
    (generate, 8),
)
