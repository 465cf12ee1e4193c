"""Our messages against those that Triton's own client carries, in one process."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from millpond.serve.proto import inference_pb2, model_config_pb2

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from tritonclient.grpc import model_config_pb2 as their_config
    from tritonclient.grpc import service_pb2 as their_service


def describe(message: Any) -> dict[str, object]:
    """Everything on the wire that two descriptors of a message must agree on."""
    fields = {
        field.name: (
            field.number,
            field.type,
            field.is_repeated,
            field.containing_oneof.name if field.containing_oneof else None,
            field.message_type.full_name if field.message_type else None,
        )
        for field in message.fields
    }
    enums = {enum.name: {value.name: value.number for value in enum.values} for enum in message.enum_types}
    return {"fields": fields, "enums": enums, "nested": {m.name: describe(m) for m in message.nested_types}}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        pytest.param(inference_pb2.DESCRIPTOR, their_service.DESCRIPTOR, id="service"),
        pytest.param(model_config_pb2.DESCRIPTOR, their_config.DESCRIPTOR, id="model configuration"),
    ],
)
def test_names_numbers_and_types_are_those_of_the_public_client(ours: Any, theirs: Any) -> None:
    expected = {name: describe(message) for name, message in theirs.message_types_by_name.items()}
    found = {name: describe(message) for name, message in ours.message_types_by_name.items()}
    assert len(expected) >= 20
    assert found == expected


def test_methods_are_those_of_the_public_client() -> None:
    def methods(file: Any) -> dict[str, tuple[str, str]]:
        service = file.services_by_name["GRPCInferenceService"]
        return {m.name: (m.input_type.full_name, m.output_type.full_name) for m in service.methods}

    assert methods(inference_pb2.DESCRIPTOR) == methods(their_service.DESCRIPTOR)
    assert len(methods(inference_pb2.DESCRIPTOR)) == 20


def test_a_message_of_theirs_reads_as_ours() -> None:
    request = their_service.ModelInferRequest(model_name="m", raw_input_contents=[b"\x01"])
    request.parameters["priority"].uint64_param = 3
    read = inference_pb2.ModelInferRequest.FromString(request.SerializeToString())
    assert (read.model_name, read.parameters["priority"].uint64_param) == ("m", 3)
    assert list(read.raw_input_contents) == [b"\x01"]
