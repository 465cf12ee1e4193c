"""Tensors on their way into `TritonPythonModel` files and out of them: datatypes, shapes, sizes, wanted outputs."""

from __future__ import annotations

import numpy as np

from millpond.serve.servables.tensors import Tensor
from tests.integration.backends.conftest import Bench, request
from tests.integration.backends.test_python import NUMBERS, ONE


async def test_large_tensors_come_back_bit_for_bit_and_their_memory_is_used_again(bench: Bench) -> None:
    await bench.add(
        "big",
        NUMBERS % ("big", 0),
        """
        import triton_python_backend_utils as pb
        class TritonPythonModel:
            def execute(self, requests):
                return [pb.InferenceResponse([pb.Tensor("OUT", r.inputs()[0].as_numpy()[::-1])]) for r in requests]
        """,
    )
    random = np.random.default_rng(1)
    for size in (1, 4096, 4097, 1 << 20, 3 << 20, 0):
        numbers = random.integers(-(2**31), 2**31 - 1, size, np.int32)
        out = (await bench.infer("big", {"IN": numbers})).outputs["OUT"]
        assert out.datatype == "INT32"
        np.testing.assert_array_equal(out.array, numbers[::-1])
    held = [(await bench.infer("big", {"IN": np.full(1 << 20, n, np.int32)})).outputs["OUT"] for n in range(5)]
    assert [(int(tensor.array.min()), int(tensor.array.max())) for tensor in held] == [(n, n) for n in range(5)]


async def test_a_request_gets_only_the_outputs_it_wants(bench: Bench) -> None:
    config = (NUMBERS % ("two", 0)).replace("output [", 'output [ { name: "B" data_type: TYPE_INT32 dims: [ -1 ] },')
    await bench.add(
        "two",
        config,
        """
        import triton_python_backend_utils as pb
        class TritonPythonModel:
            def execute(self, requests):
                a = requests[0].inputs()[0].as_numpy()
                return [pb.InferenceResponse([pb.Tensor("OUT", a), pb.Tensor("B", a)])]
        """,
    )
    assert set((await bench.infer("two", ONE)).outputs) == {"OUT", "B"}
    assert set((await bench.infer("two", ONE, outputs=("B",))).outputs) == {"B"}


async def test_every_datatype_passes_through_numpy_and_dlpack(bench: Bench) -> None:
    values = {
        "BOOL": np.array([True, False]),
        "UINT64": np.array([2**64 - 1, 0], np.uint64),
        "INT8": np.array([-128, 127], np.int8),
        "FP16": np.array([0.5, -2], np.float16),
        "FP64": np.array([1e300, -0.0]),
        "BF16": np.array([0x3F80, 0xC000], np.uint16),
        "STRING": np.array([b"\x00\xff", "ü".encode()], np.object_),
    }
    parts = "".join(f'{{ name: "{kind}" data_type: TYPE_{kind} dims: [ 2 ] }},' for kind in values).rstrip(",")
    await bench.add(
        "types",
        f'name: "types" backend: "python" input [ {parts} ] output [ {parts} ]',
        """
        import triton_python_backend_utils as pb
        class TritonPythonModel:
            def execute(self, requests):
                outputs = []
                for tensor in requests[0].inputs():
                    if tensor.name() == "STRING":
                        outputs.append(pb.Tensor(tensor.name(), tensor.as_numpy()))
                    elif tensor.name() == "BF16":
                        import torch
                        assert torch.from_dlpack(tensor).tolist() == [1.0, -2.0]
                        outputs.append(pb.Tensor.from_dlpack(tensor.name(), torch.from_dlpack(tensor.to_dlpack())))
                    else:
                        outputs.append(pb.Tensor.from_dlpack(tensor.name(), tensor.to_dlpack()))
                return [pb.InferenceResponse(outputs)]
        """,
    )
    tensors = {kind: Tensor(kind, kind.replace("STRING", "BYTES"), array) for kind, array in values.items()}
    asked = request("types", {})
    asked.inputs = tensors
    answer = await bench.servables.infer(asked)
    assert {name: (t.datatype, t.array.tolist()) for name, t in answer.outputs.items()} == {
        name: (t.datatype, t.array.tolist()) for name, t in tensors.items()
    }


async def test_a_reshaped_tensor_has_the_models_shape_there_and_the_clients_here(bench: Bench) -> None:
    config = """
    name: "shapes" backend: "python" max_batch_size: 4
    input [ { name: "IN" data_type: TYPE_INT32 dims: [ 1 ] reshape: { shape: [ ] } } ]
    output [ { name: "OUT" data_type: TYPE_INT32 dims: [ 1, 1 ] reshape: { shape: [ 1 ] } } ]
    """
    await bench.add(
        "shapes",
        config,
        """
        import triton_python_backend_utils as pb
        class TritonPythonModel:
            def execute(self, requests):
                array = requests[0].inputs()[0].as_numpy()
                assert array.shape == (3,), array.shape
                return [pb.InferenceResponse([pb.Tensor("OUT", array.reshape(3, 1))])]
        """,
    )
    answer = await bench.infer("shapes", {"IN": np.array([[1], [2], [3]], np.int32)})
    assert answer.outputs["OUT"].array.tolist() == [[[1]], [[2]], [[3]]]
