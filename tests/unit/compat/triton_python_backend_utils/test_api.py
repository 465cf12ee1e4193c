"""The API's values and checks, without a worker; what needs one is in tests/integration/backends."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from millpond.compat import triton_python_backend_utils as pb

CONFIG: dict[str, Any] = {
    "name": "m",
    "max_batch_size": 4,
    "input": [{"name": "a", "data_type": "TYPE_FP32", "dims": ["-1"]}, {"name": "b", "data_type": "TYPE_INVALID"}],
    "output": [],
}


def completing(**changes: Any) -> pb.ModelConfig:
    return pb.ModelConfig(json.dumps({**CONFIG, **changes}))


def test_completion_adds_and_fills_in() -> None:
    config = completing()
    config.add_input({"name": "b", "data_type": "TYPE_INT8", "dims": [2], "optional": True})
    config.add_input({"name": "a", "data_type": "TYPE_FP32", "dims": [-1]})
    config.add_output({"name": "y", "data_type": "TYPE_BOOL", "dims": [1]})
    config.set_max_batch_size(8)
    config.set_dynamic_batching()
    config.set_model_transaction_policy({"decoupled": True})
    document = config.as_dict()
    assert pb.get_input_config_by_name(document, "b") == {
        "name": "b",
        "data_type": "TYPE_INT8",
        "dims": [2],
        "optional": True,
    }
    assert pb.get_output_config_by_name(document, "y") == {"name": "y", "data_type": "TYPE_BOOL", "dims": [1]}
    assert pb.get_output_config_by_name(document, "z") is None
    assert (document["max_batch_size"], document["dynamic_batching"]) == (8, {})
    assert pb.using_decoupled_model_transaction_policy(document)
    assert not pb.using_decoupled_model_transaction_policy(CONFIG)


@pytest.mark.parametrize(
    ("act", "text"),
    [
        (lambda c: c.set_max_batch_size(2), "configuration specified max_batch_size 4, but in auto-complete-config"),
        (lambda c: c.add_input({"name": "a", "data_type": "TYPE_FP32"}), "is missing 'dims' property"),
        (lambda c: c.add_input({"data_type": "TYPE_FP32", "dims": [1]}), "is missing 'name' property"),
        (lambda c: c.add_output({"name": "y", "optional": True}), "contains property other than 'name', 'data_type'"),
        (
            lambda c: c.add_input({"name": "a", "data_type": "TYPE_INT8", "dims": [-1]}),
            "configuration expects datatype TYPE_FP32 for input 'a', model provides TYPE_INT8",
        ),
        (
            lambda c: c.add_input({"name": "a", "data_type": "TYPE_FP32", "dims": [3]}),
            r"the model expects dims \[3\] but the model configuration specifies dims \[-1\]",
        ),
        (lambda c: c.set_model_transaction_policy({"x": 1}), "contains property other than 'decoupled'"),
    ],
)
def test_completion_refuses_what_contradicts_the_configuration(act: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        act(completing())


def test_dynamic_batching_does_not_replace_another_scheduler() -> None:
    with pytest.raises(ValueError, match="Configuration specified scheduling_choice as 'sequence_batching'"):
        completing(sequence_batching={}).set_dynamic_batching()


@pytest.mark.parametrize("kind", [np.bool_, np.uint8, np.int64, np.float16, np.float32, np.float64, np.object_])
def test_datatypes_have_numbers_that_lead_back(kind: type) -> None:
    number = pb.numpy_to_triton_type(kind)
    assert number is not None
    assert pb.triton_to_numpy_type(number) is kind


def test_numbers_of_datatypes_are_tritons() -> None:
    assert [pb.Tensor("x", np.zeros(1, kind)).triton_dtype() for kind in ("?", "u1", "i4", "f2", "f4", "O")] == [
        1,
        2,
        8,
        10,
        11,
        13,
    ]
    assert pb.triton_string_to_numpy("TYPE_FP16") is np.float16
    assert pb.numpy_to_triton_type(np.complex64) is None


def test_elements_are_written_and_read_back() -> None:
    array = np.array([b"a", "ü"], np.object_)
    written = pb.serialize_byte_tensor(array)
    assert written == b"\x01\x00\x00\x00a\x02\x00\x00\x00\xc3\xbc"
    assert pb.deserialize_bytes_tensor(written).tolist() == [b"a", b"\xc3\xbc"]
    assert pb.serialize_byte_tensor(np.zeros(0, np.object_)) == ()
    assert pb.serialize_byte_tensor(np.zeros(1)) is None


def test_a_tensor_takes_big_endian_numbers_and_refuses_what_has_no_datatype() -> None:
    tensor = pb.Tensor("x", np.array([1, 2], ">i4"))
    assert (tensor.as_numpy().dtype, tensor.as_numpy().tolist()) == (np.dtype("<i4"), [1, 2])
    with pytest.raises(pb.TritonModelException, match="Tensor 'x': numpy type complex128 is no tensor datatype"):
        pb.Tensor("x", np.zeros(2, np.complex128))
    with pytest.raises(pb.TritonModelException, match="needs a numpy array, not list"):
        pb.Tensor("x", [1])  # type: ignore[arg-type]


def test_torch_and_numpy_share_memory_over_dlpack() -> None:
    source = torch.arange(6, dtype=torch.int32).reshape(2, 3)
    tensor = pb.Tensor.from_dlpack("x", source)
    source[0, 0] = 9
    assert tensor.as_numpy().tolist() == [[9, 1, 2], [3, 4, 5]]
    assert tensor.shape() == [2, 3]
    assert tensor.is_cpu()
    back = torch.from_dlpack(tensor)
    back[1, 2] = 7
    assert source[1, 2] == 7
    with pytest.raises(pb.TritonModelException, match="DLPack does not support string tensors"):
        pb.Tensor("x", np.array([b"a"], np.object_)).to_dlpack()


def test_what_needs_a_server_says_so() -> None:
    request = pb.InferenceRequest(model_name="m", inputs=[], requested_output_names=["y"])
    for act in (request.exec, request.is_cancelled, lambda: pb.load_model("m"), lambda: pb.Logger.log_info("x")):
        with pytest.raises(pb.TritonModelException, match="only"):
            act()


def test_requests_and_responses_refuse_wrong_parts() -> None:
    with pytest.raises(pb.TritonModelException, match="inputs must hold Tensor objects, not ndarray"):
        pb.InferenceRequest(inputs=[np.zeros(1)])  # type: ignore[list-item]
    with pytest.raises(pb.TritonModelException, match="output_tensors must hold Tensor objects, not int"):
        pb.InferenceResponse([1])  # type: ignore[list-item]
    with pytest.raises(pb.TritonModelException, match="parameter 'p' is of type list"):
        pb.InferenceResponse([], parameters={"p": []})  # type: ignore[dict-item]
    with pytest.raises(pb.TritonModelException, match="9 is no code of TritonError"):
        pb.TritonError("x", 9)


def test_flags_of_a_request_can_be_set() -> None:
    request = pb.InferenceRequest(correlation_id=3, inputs=[], model_name="m", parameters={"a": 1})
    request.set_flags(pb.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START | pb.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END)
    assert (request.flags(), request.correlation_id(), request.parameters()) == (3, 3, '{"a":1}')
