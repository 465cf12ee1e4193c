"""JSON to values and back: every form, and the text of every refusal."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from millpond.serve.http.mindspore.bodies import make_reply, parse_body, parse_instances
from millpond.serve.http.mindspore.target import Target, parse_target
from millpond.serve.http.mindspore.values import parse_value
from millpond.serve.mindspore.calls import CallError, Failure
from millpond.serve.mindspore.values import Value, make_text


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        (3, "int32", 3),
        (True, "bool", True),
        (1.5, "float32", 1.5),
        ([[1, 2], [3, 4]], "int32", [[1, 2], [3, 4]]),
        ([True, False], "bool", [True, False]),
        ([[[0.5]]], "float32", [[[0.5]]]),
        ({"b64": b64(np.int64(7).tobytes()), "type": "int64"}, "int64", 7),
        ({"b64": b64(np.ones((2, 3), "<f2").tobytes()), "type": "fp16", "shape": [2, 3]}, "float16", [[1.0] * 3] * 2),
        ({"b64": "", "type": "int32", "shape": [1, 0]}, "int32", [[]]),
        ({"b64": b64(b"\x02\x00"), "type": "bool", "shape": [2]}, "bool", [True, False]),
    ],
)
def test_numbers_become_arrays(value: Any, dtype: str, expected: Any) -> None:
    parsed = parse_value(value)
    assert parsed.kind == "tensor"
    assert parsed.array.dtype == dtype
    assert parsed.array.tolist() == expected


@pytest.mark.parametrize(
    ("value", "kind", "shape"),
    [
        ("ABC", "string", ()),
        (["ABC"], "string", (1,)),
        ([["ABC"]], "string", (1, 1)),
        ({"b64": b64(b"ABC")}, "bytes", ()),
        ({"b64": b64(b"ABC"), "type": "str", "shape": [1]}, "string", (1,)),
        ([{"b64": b64(b"ABC"), "type": "str"}], "string", (1,)),
        ([{"b64": b64(b"ABC")}], "bytes", (1,)),
    ],
)
def test_texts_keep_their_kind_and_shape(value: Any, kind: str, shape: tuple[int, ...]) -> None:
    parsed = parse_value(value)
    assert (parsed.kind, parsed.array.shape, parsed.array.reshape(-1).tolist()) == (kind, shape, [b"ABC"])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "json value is null, it is not supported"),
        ([], "json array, shape is empty"),
        ([None], "json array, data type is unknown"),
        ([[]], "json array, data type is unknown"),
        ([[False], True], "invalid json array: json type is not array"),
        ([False, [True]], "json array, data should be number, bool, string or bytes"),
        ([[False, True], [True]], "invalid json array: json size is 1, the dim 1 expected to be 2"),
        ([[[False, True]], [[True]]], "invalid json array: json size is 1, the dim 2 expected to be 2"),
        ([[False, True], [1, 1]], "json array, elements type is not equal"),
        ([[1.1, 1]], "json array, elements type is not equal"),
        ([[1.1, "b"]], "json array, elements type is not equal"),
        (["a", "b"], "json array, string or bytes type only support one item"),
        ([{"b64": ""}, {"b64": ""}], "json array, string or bytes type only support one item"),
        ([{"b64": "AAAA", "type": "int8"}], "object only support string or bytes type"),
        (2**31, "out of range of int32"),
        (["x" * 3, ["y"]], "only support one item"),
        ({}, "json object, value is empty"),
        ({"b64": "", "x": 1}, r"key is not \['b64', 'type', 'shape'\], fail key:x"),
        ({"type": "str"}, "'b64' should be specified only one time"),
        ({"b64": "", "type": "int4"}, "json object, specified type:'int4' is illegal"),
        ({"b64": "", "type": 1}, "key is 'type', value should be string type"),
        ({"b64": "", "shape": 1}, "key is 'shape', value should be array type"),
        ({"b64": "", "shape": [-1]}, "array value should be unsigned integer"),
        ({"b64": "", "shape": [1.5]}, "array value should be unsigned integer"),
        ({"b64": "", "type": "int32", "shape": [1, 2, 0, 1]}, r"invalid shape value \[1,2,0,1\]"),
        ({"b64": "", "type": "str", "shape": [0]}, "only support scalar when data type is string or bytes"),
        ({"b64": "AAA", "type": "str"}, "'AAA' is illegal b64 encode string"),
        ({"b64": "*AAA"}, "is illegal b64 encode string"),
        ({"b64": 1}, "type is string, but json is not string type"),
        (
            {"b64": b64(b"1234"), "type": "fp16", "shape": [3]},
            "decode base64 size:4; Given info: type:float16; type size:2; element nums:3",
        ),
        ({"b64": "", "type": "int8", "shape": [2**31]}, "number value should not be negative number"),
        ({"b64": "", "type": "int8", "shape": [1] * 99}, "more than 32 dims"),
    ],
)
def test_what_means_nothing_is_refused_in_the_originals_words(value: Any, text: str) -> None:
    with pytest.raises(CallError, match=text):
        parse_value(value)


def test_arrays_nested_without_end_are_refused() -> None:
    deep: Any = [1]
    for _ in range(200):
        deep = [deep]
    with pytest.raises(CallError, match="more than 32 dims"):
        parse_value(deep)


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ([], "key 'instances' expects to exist once, but actually 0 times"),
        ({"Instances": {}}, "key 'instances' expects to exist once, but actually 0 times"),
        ({"instances": {}}, "json object, value is empty"),
        ({"instances": []}, "instances value is array type, but no value"),
        ({"instances": 1}, "instances no key mode is not supported"),
        ({"instances": [1]}, "instances no key mode is not supported"),
        ({"instances": [{"a": 1}, 1]}, "json array, instance is not object type"),
        ({"instances": [{"a": 1}, {}]}, "json array, instance is object type, but no value"),
        ({"instances": {"": 1}}, "string key is empty"),
    ],
)
def test_requests_without_instances_are_refused(document: Any, text: str) -> None:
    with pytest.raises(CallError, match=f"Parser request failed, {text}"):
        parse_instances(document)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "http message invalid"),
        (b"{", "Illegal JSON format"),
        (b"\xff", "Illegal JSON format"),
        (b'{"instances": {"a": NaN}}', "Illegal JSON format.NaN is not JSON"),
        (b"[" * 100_000, "Illegal JSON format"),
    ],
)
def test_bodies_that_are_no_json_are_refused(body: bytes, text: str) -> None:
    with pytest.raises(CallError, match=text):
        parse_body(body)


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/model/add:sum", Target("add", 0, "sum")),
        ("/model/add/version/3:sum", Target("add", 3, "sum")),
        ("/version/0/model/add:sum", Target("add", 0, "sum")),
        ("/model/a%20b:sum", Target("a b", 0, "sum")),
    ],
)
def test_a_path_names_a_method(path: str, target: Target) -> None:
    assert parse_target(path) == target


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/x/:sum", r"the keyword:\[model\] must contain\."),
        ("/model/add", r"the keyword:\[service method\] must contain\."),
        ("/model/add:", r"the keyword:\[service method\] must contain\."),
        ("/model/add/version/-1:sum", "version number range failed, request version number -1"),
        ("/model/add/version/4294967295:sum", "version number range failed"),
        ("/model/add/version/" + "9" * 5000 + ":sum", "version number range failed"),
        ("/model/add/version/x:sum", r"the keyword:\[version\] value invalid"),
    ],
)
def test_paths_that_lack_a_part_are_refused(path: str, text: str) -> None:
    with pytest.raises(CallError, match=text):
        parse_target(path)


def test_replies_hold_numbers_strings_and_bytes_and_failures_in_order() -> None:
    results = [
        {
            "f": Value("tensor", np.array([1.5], np.float16)),
            "a": Value("tensor", np.uint64(2**63)),
            "t": make_text("é".encode(), "string"),
            "b": make_text(b"\x00", "bytes"),
        },
        Failure(1, "no"),
    ]
    assert json.loads(make_reply(results)) == {
        "instances": [{"f": [1.5], "a": 2**63, "t": "é", "b": {"b64": "AA=="}}, {"error_msg": "no"}]
    }
    assert make_reply([Failure(1, "no")] * 2) == b'{"error_msg":"no"}'


@given(
    arrays.arrays(
        dtype=st.sampled_from(["int8", "uint8", "int32", "int64", "uint64", "float16", "float32", "float64", "bool"]),
        shape=arrays.array_shapes(min_dims=0, max_dims=4, min_side=1, max_side=4),
    )
)
@settings(max_examples=100, deadline=None)
def test_base64_carries_any_array(array: Any) -> None:
    array = np.asarray(array)
    parsed = parse_value({"b64": b64(array.tobytes()), "type": array.dtype.name, "shape": list(array.shape)})
    assert parsed.array.shape == array.shape
    np.testing.assert_array_equal(parsed.array, array)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["b64", "type", "shape", "x"]), inner),
    max_leaves=12,
)


@given(json_values)
@settings(max_examples=300, deadline=None)
def test_any_json_is_a_value_or_a_refusal(value: Any) -> None:
    outcome = ""
    try:
        outcome = parse_instances({"instances": {"x": value}})[0]["x"].kind
    except CallError as error:
        outcome = error.message[: len("Parser request failed, ")]
    assert outcome in ("tensor", "string", "bytes", "Parser request failed, ")
