"""Plans of infer calls against protobuf: whatever a plan makes of a message, parsing it says the same."""

from __future__ import annotations

import random

import numpy as np
import pytest

from millpond.serve.grpc.kserve.infer_messages import OutputWish
from millpond.serve.grpc.kserve.infer_plan import MessagePlans, learn_answer
from millpond.serve.proto import inference_pb2 as pb
from millpond.serve.servables.config import ServableConfig
from millpond.serve.servables.messages import InferRequest, InferResponse
from millpond.serve.servables.tensors import Tensor


def message(seed: int, *, rows: int = 2, model: str = "m", id: str = "", version: str = "") -> pb.ModelInferRequest:
    random = np.random.default_rng(seed)
    made = pb.ModelInferRequest(model_name=model, model_version=version, id=id)
    for name, width in (("A", 3), ("B", 300)):
        made.inputs.add(name=name, datatype="FP32", shape=(rows, width))
        made.raw_input_contents.append(random.standard_normal((rows, width), dtype=np.float32).tobytes())
    made.outputs.add(name="OUT")
    return made


def request_of(made: pb.ModelInferRequest) -> InferRequest:
    """What the words of a message say, with its tensors."""
    inputs = {
        item.name: Tensor(item.name, "FP32", np.frombuffer(raw, np.float32).reshape(tuple(item.shape)))
        for item, raw in zip(made.inputs, made.raw_input_contents, strict=True)
    }
    return InferRequest(made.model_name, inputs, outputs=("OUT",), request_id=made.id)


def test_a_plan_finds_the_tensors_of_other_messages_of_its_kind() -> None:
    plans = MessagePlans()
    first = message(1)
    assert plans.find(first.SerializeToString()) is None
    assert plans.keep(first.SerializeToString(), request_of(first), {"OUT": OutputWish()}) is not None
    for seed in range(20):
        other = message(seed)
        data = other.SerializeToString()
        plan = plans.find(data)
        assert plan is not None
        found, expected = plan.infer.request(data), request_of(other)
        assert (found.model, found.version, found.outputs) == ("m", None, ("OUT",))
        assert list(found.inputs) == ["A", "B"]
        for name, tensor in expected.inputs.items():
            assert np.array_equal(found.inputs[name].array, tensor.array)


def test_no_other_message_is_taken_for_one_of_a_plan() -> None:
    plans = MessagePlans()
    data = message(1).SerializeToString()
    plans.keep(data, request_of(message(1)), {"OUT": OutputWish()})
    others = [message(1, rows=1), message(1, model="n"), message(1, id="x"), message(1, version="2")]
    swapped = message(1)
    swapped.inputs[0].name, swapped.inputs[1].name = "B", "A"
    assert all(plans.find(other.SerializeToString()) is None for other in [*others, swapped])
    chance = random.Random(3)
    words = len(data) - sum(map(len, message(1).raw_input_contents)) - 5
    for _ in range(200):
        at = chance.randrange(words)
        broken = data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
        assert plans.find(broken) is None


@pytest.mark.parametrize(("id", "version"), [("seven", ""), ("", "x" * 3000)])
def test_what_is_a_requests_own_or_long_is_not_kept(id: str, version: str) -> None:
    plans = MessagePlans()
    made = message(1, id=id, version=version)
    assert plans.keep(made.SerializeToString(), request_of(made), {}) is None


def test_a_message_whose_tensors_are_not_its_end_is_not_kept() -> None:
    made = message(1)
    words = pb.ModelInferRequest()
    words.CopyFrom(made)
    words.ClearField("raw_input_contents")
    tensors = pb.ModelInferRequest(raw_input_contents=made.raw_input_contents)
    data = tensors.SerializeToString() + words.SerializeToString()
    assert pb.ModelInferRequest.FromString(data) == made
    assert MessagePlans().keep(data, request_of(made), {}) is None


def test_an_answer_in_parts_is_the_message() -> None:
    plans, config = MessagePlans(), ServableConfig("m", "python", (), ())
    made = message(1)
    plan = plans.keep(made.SerializeToString(), request_of(made), {})
    assert plan is not None
    for seed in range(5):
        array = np.random.default_rng(seed).standard_normal((2, 100), dtype=np.float32)
        response = InferResponse("m", 3, {"OUT": Tensor("OUT", "FP32", array)})
        whole = pb.ModelInferResponse(model_name="m", model_version="3", raw_output_contents=[array.tobytes()])
        whole.outputs.add(name="OUT", datatype="FP32", shape=(2, 100))
        parts = plan.infer.answer(config, response)
        assert (parts is None) == (seed == 0)
        if parts is None:
            learn_answer(plan.infer, config, response, whole)
            parts = plan.infer.answer(config, response) or []
        assert b"".join(parts) == whole.SerializeToString()
    response.outputs["OUT"].array = array[:1]
    assert plan.infer.answer(config, response) is None
    assert plan.infer.answer(ServableConfig("m", "python", (), ()), InferResponse("m", 3, response.outputs)) is None


def test_an_answer_whose_elements_have_lengths_is_not_kept() -> None:
    plans, config = MessagePlans(), ServableConfig("m", "python", (), ())
    plan = plans.keep(message(1).SerializeToString(), request_of(message(1)), {})
    assert plan is not None
    response = InferResponse("m", 3, {"OUT": Tensor("OUT", "BYTES", np.array([b"one", b"three"], object))})
    whole = pb.ModelInferResponse(model_name="m", raw_output_contents=[b"\3\0\0\0one\5\0\0\0three"])
    learn_answer(plan.infer, config, response, whole)
    assert plan.infer.answer(config, response) is None
