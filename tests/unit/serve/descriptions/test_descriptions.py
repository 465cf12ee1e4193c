"""Descriptions of servables: OpenAPI that its validator and jsonschema accept, proto files that protoc compiles."""

from __future__ import annotations

import importlib.resources
import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import schemathesis
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_tools import protoc

from millpond.serve.descriptions.openapi import make_openapi
from millpond.serve.descriptions.proto import make_proto
from millpond.serve.servables.config import MethodSpec, ServableConfig
from millpond.serve.servables.tensors import NUMPY_TYPES, TensorSpec

A = TensorSpec("a", "FP32", (4,))
B = TensorSpec("b", "BYTES", (1,), optional=True)
IMAGE = TensorSpec("image.1", "UINT8", (2, -1))
SUM = TensorSpec("sum", "FP64", (1,))
CALC = ServableConfig(
    "calc",
    "stages",
    (A, B),
    (SUM,),
    max_batch_size=8,
    methods=(
        MethodSpec("add", ("a", "b"), ("sum",), (A, B), False, (SUM,), 'Adds "all".\n\nTwice: */ // x\\'),
        MethodSpec("look", ("image.1",), ("a",), (IMAGE,), True, (A,)),
        MethodSpec("any", ("x1", "X_1"), ("y",)),
    ),
)
TRITON = ServableConfig(
    "9 odd/näme",
    "python",
    tuple(TensorSpec(f"in {name}", name, (3,)) for name in NUMPY_TYPES if name not in ("FP16", "BF16")),
    (IMAGE,),
)
STREAM = ServableConfig(
    "words", "llm", (TensorSpec("text_input", "BYTES", (1,)),), (TensorSpec("text_output", "BYTES", (-1,)),),
    max_batch_size=4, decoupled=True,
)  # fmt: skip
HALVES = ServableConfig("halves", "python", (TensorSpec("x", "FP16", (2,)),), (TensorSpec("y", "BF16", (2,)),))
SILENT = ServableConfig("silent", "stages", (), (), methods=(MethodSpec("run", (), ()),))
ALL = (CALC, TRITON, STREAM, HALVES, SILENT)


def body_of(document: dict[str, Any], path: str) -> Any:
    """A validator of a path's request body."""
    schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    return jsonschema_rs.validator_for({**schema, "components": document["components"]})


def test_the_document_is_openapi_3_1_and_names_every_way_to_call() -> None:
    document = make_openapi(ALL, "1")
    schemathesis.openapi.from_dict(document).validate()
    assert document["openapi"] == "3.1.0"
    assert sorted(document["paths"]) == [
        "/model/calc:add",
        "/model/calc:any",
        "/model/calc:look",
        "/model/silent:run",
        "/v2/models/9%20odd%2Fn%C3%A4me/generate",
        "/v2/models/9%20odd%2Fn%C3%A4me/infer",
        "/v2/models/calc/generate",
        "/v2/models/calc/infer",
        "/v2/models/halves/infer",
        "/v2/models/words/generate_stream",
    ]
    assert document["paths"]["/model/calc:add"]["post"]["summary"] == 'Adds "all".'


@pytest.mark.parametrize(
    ("path", "right", "wrong"),
    [
        (
            "/v2/models/calc/infer",
            {"inputs": [{"name": "a", "datatype": "FP32", "shape": [2, 4], "data": [[1, 2, 3, 4], [5, 6, 7, 8.5]]}]},
            [
                {"inputs": []},
                {"inputs": [{"name": "z", "datatype": "FP32", "shape": [1, 4], "data": [1]}]},
                {"inputs": [{"name": "a", "datatype": "FP64", "shape": [1, 4], "data": [1]}]},
                {"inputs": [{"name": "a", "datatype": "FP32", "shape": [4], "data": [1]}]},
                {"inputs": [{"name": "a", "datatype": "FP32", "shape": [1, 5], "data": [1]}]},
                {"inputs": [{"name": "a", "datatype": "FP32", "shape": [1, 4], "data": [["x"]]}]},
            ],
        ),
        ("/v2/models/calc/generate", {"a": [1, 2, 3, 4], "b": "x"}, [{"b": "x"}, {"a": [1]}, {"a": [1, 2, 3, "x"]}]),
        (
            "/model/calc:add",
            {"instances": [{"a": [1, 2, 3, 4]}, {"a": {"b64": "AAAA", "type": "float32", "shape": [4]}, "b": "x"}]},
            [{"instances": []}, {"instances": {"b": "x"}}, {"instances": {"a": [1, 2]}}, {}],
        ),
        ("/model/calc:look", {"instances": {"image.1": [[1, 2], [3, 255]]}}, [{"instances": {"image.1": [[1]]}},
         {"instances": {"image.1": [[1], [256]]}}, {"instances": {"image.1": [[1], [-1]]}}]),
        ("/model/calc:any", {"instances": {"x1": [[True]], "X_1": "text"}}, [{"instances": {"x1": 1}}]),
    ],
)  # fmt: skip
def test_schemas_take_right_bodies_and_no_wrong_ones(path: str, right: Any, wrong: list[Any]) -> None:
    validator = body_of(make_openapi(ALL, "1"), path)
    validator.validate(right)
    assert [body for body in wrong if validator.is_valid(body)] == []


@pytest.mark.parametrize("config", ALL, ids=lambda config: config.name)
def test_the_proto_file_compiles(config: ServableConfig, tmp_path: Path) -> None:
    compiled = compile_proto(make_proto(config), tmp_path)
    service = compiled.service[0]
    assert len(service.method) == max(1, len(config.methods))


def test_messages_carry_the_types_of_the_method(tmp_path: Path) -> None:
    compiled = compile_proto(make_proto(CALC), tmp_path)
    assert [(call.name, call.server_streaming) for call in compiled.service[0].method] == [
        ("Add", False),
        ("Look", True),
        ("Any", False),
    ]
    pool = descriptor_pool.DescriptorPool()
    pool.Add(compiled)
    add = message_factory.GetMessageClass(pool.FindMessageTypeByName("millpond.servables.calc.AddRequest"))
    assert add(a=[1, 2], b=b"x").SerializeToString() == b"\x0a\x08\x00\x00\x80\x3f\x00\x00\x00\x40\x12\x01x"
    look = pool.FindMessageTypeByName("millpond.servables.calc.LookRequest").fields[0]
    assert (look.name, look.json_name, look.message_type.name) == ("image_1", "image.1", "Uint32Tensor")
    either = pool.FindMessageTypeByName("millpond.servables.calc.AnyRequest").fields
    assert [field.message_type.name for field in either] == ["AnyTensor"] * 2
    assert [field.json_name for field in either] == ["x1", "X_1"]


def compile_proto(text: str, folder: Path) -> Any:
    (folder / "servable.proto").write_text(text)
    out = folder / "out.pb"
    include = importlib.resources.files("grpc_tools") / "_proto"
    status = protoc.main(
        ["protoc", f"-I{folder}", f"-I{include}", f"--descriptor_set_out={out}", str(folder / "servable.proto")]
    )
    assert status == 0, text
    return descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file[0]


def test_descriptions_are_json() -> None:
    assert json.loads(json.dumps(make_openapi(ALL, "1")))["info"]["version"] == "1"
