"""Infer documents and their faults, for the corpus that is sent to a real Triton and to Millpond.

Makes requests as plain documents in the JSON form; `as_message` says the same in the gRPC form.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

from google.protobuf import json_format

from millpond.serve.proto import inference_pb2 as pb

Document = dict[str, Any]
Fault = Callable[[Document, random.Random], object]
CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
ODD: tuple[Any, ...] = (None, True, 5, -1, 1.5, "x", "", [], {}, [1], {"a": 1}, 1 << 40, 1 << 64)


def values(datatype: str, count: int, rng: random.Random) -> list[Any]:
    """Returns elements of a datatype as JSON has them."""
    if datatype == "BYTES":
        return [rng.choice(["", "a", "ü€", "two words", "0" * 40, '"quoted"\\', "line\n"]) for _ in range(count)]
    if datatype == "BOOL":
        return [rng.random() < 0.5 for _ in range(count)]
    if datatype.startswith("FP"):
        return [rng.choice([0.0, -1.5, 0.1, 1e10, 3, -7.25, rng.uniform(-9, 9)]) for _ in range(count)]
    bits = int(datatype.lstrip("UINT"))
    low, high = (0, (1 << bits) - 1) if datatype.startswith("U") else (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    return [rng.choice([low, high, 0, 1, rng.randint(low, high)]) for _ in range(count)]


def identity_document(datatype: str, rng: random.Random) -> Document:
    """Returns a good request to the identity of a datatype."""
    shape = [rng.randint(1, 8), rng.choice([1, 2, 5, 0, 16])]
    data: list[Any] = values(datatype, math.prod(shape), rng)
    if rng.random() < 0.4:
        data = [data[row * shape[1] : (row + 1) * shape[1]] for row in range(shape[0])]
    document: Document = {"inputs": [{"name": "IN", "shape": shape, "datatype": datatype, "data": data}]}
    if rng.random() < 0.3:
        document["id"] = rng.choice(["1", "abc", "", "ü"])
    if rng.random() < 0.3:
        document["outputs"] = [{"name": "OUT"}]
    return document


def simple_document(rng: random.Random, rows: int = 1) -> Document:
    """Returns a good request to the model `simple`."""
    inputs = [
        {
            "name": f"INPUT{index}",
            "shape": [rows, 16],
            "datatype": "INT32",
            "data": [rng.randint(-99, 99) for _ in range(16 * rows)],
        }
        for index in range(2)
    ]
    document: Document = {"inputs": inputs}
    if rng.random() < 0.5:
        document["id"] = str(rng.randint(0, 999))
    if rng.random() < 0.5:
        document["outputs"] = [{"name": name} for name in rng.choice([["OUTPUT0"], ["OUTPUT1", "OUTPUT0"]])]
    return document


def _entry(document: Document, rng: random.Random) -> Document:
    entry: Document = rng.choice(document["inputs"])
    return entry


def _set_parameter(document: Document, rng: random.Random) -> None:
    names = ["priority", "timeout", "sequence_id", "sequence_start", "sequence_end", "binary_data_output"]
    names += ["mine", "triton_mine", "triton_enable_empty_final_response", "headers"]
    document["parameters"] = {rng.choice(names): rng.choice(ODD)}


def _set_output_parameter(document: Document, rng: random.Random) -> None:
    names = ["classification", "binary_data", "shared_memory_region", "shared_memory_byte_size", "mine"]
    document["outputs"] = [{"name": "OUTPUT0", "parameters": {rng.choice(names): rng.choice(ODD)}}]


def _set_input_parameter(document: Document, rng: random.Random) -> None:
    names = ["binary_data_size", "shared_memory_region", "shared_memory_offset", "shared_memory_byte_size", "mine"]
    _entry(document, rng)["parameters"] = {rng.choice(names): rng.choice(ODD)}


def _odd_element(document: Document, rng: random.Random) -> None:
    data = _entry(document, rng)["data"]
    data[rng.randrange(len(data))] = rng.choice(ODD)


def _odd_shape(document: Document, rng: random.Random) -> None:
    shapes: list[Any] = [[16], [1, 8], [1, 17], [2, 16], [1, 1, 16], [0, 16], [1, -16], [-1, 16], [16, 1], []]
    shapes += [[1, 1 << 33], [1, 16, 1], [1 << 62, 4], [-1, -16], [1.0, 16], ["1", 16], [None], "1,16", 16, None, {}]
    _entry(document, rng)["shape"] = rng.choice(shapes)


def _odd_datatype(document: Document, rng: random.Random) -> None:
    kinds: list[Any] = ["FP32", "INT64", "int32", "INT33", "", "BYTES", "BOOL", "FP16", "BF16", "UINT32", "INT8"]
    _entry(document, rng)["datatype"] = rng.choice([*kinds, "STRING", None, 5, []])


def _odd_batch(document: Document, rng: random.Random) -> None:
    rows = rng.choice([0, 8, 9, 20])
    for entry in document["inputs"]:
        entry["shape"] = [rows, 16]
        entry["data"] = [1] * (16 * rows)


def _odd_outputs(document: Document, rng: random.Random) -> None:
    lists: list[Any] = [[{"name": "OUTPUT9"}], [{"name": "OUTPUT0"}] * 2, [], [{}], [{"name": 5}], ["OUTPUT0"], {}]
    document["outputs"] = rng.choice([*lists, None, "OUTPUT0", [{"name": "OUTPUT0"}, {"name": "nothing"}], [[]], [5]])


FAULTS: tuple[Fault, ...] = (
    lambda d, r: d["inputs"].pop(r.randrange(2)),
    lambda d, r: d["inputs"].append(dict(_entry(d, r))),
    lambda d, r: d["inputs"].append({**_entry(d, r), "name": "INPUT7"}),
    lambda d, r: _entry(d, r).update(name=r.choice(["INPUT9", "", "input0", "INPUT0 ", "ü"])),
    lambda d, r: _entry(d, r).pop(r.choice(["name", "shape", "datatype", "data"])),
    lambda d, r: _entry(d, r).update({r.choice(["name", "data"]): r.choice(ODD)}),
    lambda d, r: _entry(d, r).update(data=[1] * r.choice([0, 15, 17, 32])),
    lambda d, r: _entry(d, r).update(data=[[1] * 8, [2] * r.choice([7, 8, 9])]),
    lambda d, r: d.update(inputs=r.choice([*ODD, [None], [5], ["x"], [[]]])),
    lambda d, r: d.pop("inputs"),
    lambda d, r: d.update(id=r.choice(ODD)),
    lambda d, r: d.update(parameters=r.choice(ODD)),
    lambda d, r: d.update({r.choice(["model_name", "Inputs", "extra"]): r.choice(ODD)}),
    lambda d, r: d["inputs"].reverse(),
    _odd_element,
    _odd_shape,
    _odd_shape,
    _odd_datatype,
    _odd_batch,
    _odd_outputs,
    _set_parameter,
    _set_parameter,
    _set_output_parameter,
    _set_output_parameter,
    _set_input_parameter,
)


def broken_text(text: bytes, rng: random.Random) -> bytes:
    """Returns JSON that is none, or strange JSON."""
    cut = rng.randrange(1, len(text))
    return rng.choice(
        [
            b"",
            b" ",
            b"[]",
            b"5",
            b"null",
            b'"x"',
            b"{}",
            b"{",
            b"{'inputs': []}",
            b'{"inputs": [}',
            b'{"a":1,}',
            b'{"a" 1}',
            b'{"a":1 "b":2}',
            b"{5:1}",
            b'{"a":01}',
            b'{"a":1e}',
            b'{"a":tru}',
            b'{"a":"\\x"}',
            b'{"a":"\\u12"}',
            b'{"a":"\\ud800"}',
            b'{"a":"\x01"}',
            b'{"a":"\xff"}',
            b'{"a":[1,2',
            b'{"a":"open',
            b'{"a":1.}',
            b'{"a":-}',
            b'{"a":[1 2]}',
            b'{"a":1e999}',
            text[:cut],
            text + b"}",
            text + b" x",
            text + b"\n\n",
            b"\xef\xbb\xbf" + text,
            text.replace(b":", b": /* c */", 1),
            b"[" * rng.choice([10, 200]) + b"]" * 10,
        ]
    )


def as_message(document: Document, model: str, version: str = "") -> pb.ModelInferRequest:
    """Returns a good document as the message of gRPC, with typed contents."""
    message = pb.ModelInferRequest(model_name=model, model_version=version, id=document.get("id", ""))
    for entry in document["inputs"]:
        tensor = message.inputs.add(name=entry["name"], datatype=entry["datatype"], shape=entry["shape"])
        flat = _flat(entry["data"])
        items = [item.encode() for item in flat] if entry["datatype"] == "BYTES" else flat
        getattr(tensor.contents, CONTENTS[entry["datatype"]]).extend(items)
    for entry in document.get("outputs", ()):
        message.outputs.add(name=entry["name"])
    return message


def as_text(message: bytes, kind: Any) -> Document:
    """Returns a message as a document, for reports."""
    found: Document = json_format.MessageToDict(kind.FromString(message), preserving_proto_field_name=True)
    return found


def _flat(data: list[Any]) -> list[Any]:
    return [item for row in data for item in _flat(row)] if data and isinstance(data[0], list) else data
