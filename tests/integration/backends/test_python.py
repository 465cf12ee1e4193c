"""`TritonPythonModel` files in real worker processes, asked through the registry."""

from __future__ import annotations

import asyncio
import json
import logging

import numpy as np
import pytest

from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.messages import SequenceRef
from millpond.serve.servables.tensors import Tensor
from tests.integration.backends.conftest import Bench, request

NUMBERS = """
name: "%s" backend: "python" max_batch_size: %d
input [ { name: "IN" data_type: TYPE_INT32 dims: [ -1 ] } ]
output [ { name: "OUT" data_type: TYPE_INT32 dims: [ -1 ] } ]
instance_group [ { count: 1 kind: KIND_CPU } ]
"""
TEXTS = """
name: "%s" backend: "python"
input [ { name: "IN" data_type: TYPE_STRING dims: [ -1 ] optional: true } ]
output [ { name: "OUT" data_type: TYPE_STRING dims: [ -1 ] } ]
"""
DECOUPLED = "model_transaction_policy { decoupled: True }"
ONE = {"IN": np.array([1], np.int32)}


def texts(*items: str) -> dict[str, np.ndarray]:
    return {"IN": np.array([item.encode() for item in items], np.object_)}


async def test_every_code_of_an_error_reaches_the_client(bench: Bench) -> None:
    await bench.add(
        "err",
        NUMBERS % ("err", 0),
        """
        import triton_python_backend_utils as pb
        class TritonPythonModel:
            def execute(self, requests):
                T = pb.TritonError
                codes = [T.UNKNOWN, T.INTERNAL, T.NOT_FOUND, T.INVALID_ARG, T.UNAVAILABLE, T.UNSUPPORTED,
                         T.ALREADY_EXISTS, T.CANCELLED]
                code = int(pb.get_input_tensor_by_name(requests[0], "IN").as_numpy()[0])
                return [pb.InferenceResponse(error=pb.TritonError(f"code {code}", codes[code]))]
        """,
    )
    codes = []
    for number in range(8):
        with pytest.raises(ServableError, match=f"^code {number}$") as caught:
            await bench.infer("err", {"IN": np.array([number], np.int32)})
        codes.append(caught.value.code)
    assert codes == [
        "unknown",
        "internal",
        "not_found",
        "invalid_argument",
        "unavailable",
        "unsupported",
        "already_exists",
        "cancelled",
    ]


async def test_an_exception_names_its_lines_as_triton_does_without_the_folder(bench: Bench) -> None:
    await bench.add(
        "bad",
        NUMBERS % ("bad", 0),
        """
        class TritonPythonModel:
            def inner(self):
                raise ValueError("python raised")
            def execute(self, requests):
                return self.inner()
        """,
    )
    with pytest.raises(ServableError) as caught:
        await bench.infer("bad", ONE)
    assert caught.value.code == "internal"
    assert caught.value.message == (
        "Failed to process the request(s) for model 'bad_0_0', message: ValueError: python raised\n\n"
        "At:\n  bad/1/model.py(4): inner\n  bad/1/model.py(6): execute\n"
    )


@pytest.mark.parametrize(
    ("returned", "text"),
    [
        ("None", "Expected a list in the execute return, found type '<class 'NoneType'>'."),
        ("[]", "InferenceRequest(s) size is:1, and InferenceResponse(s) size is:0"),
        ("[3]", "Expected an 'InferenceResponse' object in the execute function return list, found type"),
    ],
)
async def test_a_wrong_return_value_is_an_error(bench: Bench, returned: str, text: str) -> None:
    source = f"""
    class TritonPythonModel:
        def execute(self, requests):
            return {returned}
    """
    await bench.add("wrong", NUMBERS % ("wrong", 0), source)
    with pytest.raises(ServableError) as caught:
        await bench.infer("wrong", ONE)
    assert text in caught.value.message


async def test_a_model_sees_what_triton_shows_it(bench: Bench) -> None:
    await bench.add(
        "seen",
        TEXTS % "seen",
        """
        import json, numpy as np
        import triton_python_backend_utils as pb
        from .beside import NAME
        class TritonPythonModel:
            def initialize(self, args):
                self.args = args
                self.config = json.loads(args["model_config"])
            def execute(self, requests):
                responses = []
                for request in requests:
                    seen = {
                        "id": request.request_id(), "key": request.correlation_id(), "flags": request.flags(),
                        "parameters": request.parameters(), "outputs": request.requested_output_names(),
                        "timeout": request.timeout(), "input": pb.get_input_tensor_by_name(request, "IN") is None,
                        "beside": NAME, "cancelled": request.is_cancelled(),
                        "output": pb.get_output_config_by_name(self.config, "OUT")["data_type"],
                        "args": {name: self.args[name] for name in self.args if name.startswith("model_instance")},
                        "version": self.args["model_version"], "name": self.args["model_name"],
                    }
                    out = pb.Tensor("OUT", np.array([json.dumps(seen).encode()], dtype=np.object_))
                    responses.append(pb.InferenceResponse([out], parameters={"said": True, "count": 2}))
                return responses
        """.replace("from .beside import NAME", "NAME = 'x'"),
    )
    answer = await bench.servables.infer(
        request("seen", {}, request_id="7", parameters={"temperature": 0.5, "foo": "bär"}, timeout_us=9_000_000)
    )
    seen = json.loads(answer.outputs["OUT"].array[0])
    assert seen == {
        "id": "7",
        "key": 0,
        "flags": 0,
        "parameters": '{"temperature":0.5,"foo":"bär"}',
        "outputs": ["OUT"],
        "timeout": 9_000_000,
        "input": True,
        "beside": "x",
        "cancelled": False,
        "output": "TYPE_STRING",
        "args": {
            "model_instance_kind": "CPU",
            "model_instance_name": "seen_0_0",
            "model_instance_device_id": "0",
        },
        "version": "1",
        "name": "seen",
    }
    assert answer.parameters == {"said": True, "count": 2}
    assert (answer.model, answer.version, answer.final) == ("seen", 1, True)


async def test_a_model_imports_the_files_beside_it_both_ways(bench: Bench) -> None:
    source = """
    import triton_python_backend_utils as pb
    from .relative import ADD
    import absolute
    class TritonPythonModel:
        def execute(self, requests):
            return [pb.InferenceResponse([pb.Tensor("OUT", r.inputs()[0].as_numpy() + ADD + absolute.ADD)])
                    for r in requests]
    """
    folder = bench.write("beside", NUMBERS % ("beside", 0), source)
    assert folder.path is not None
    (folder.path / "1" / "relative.py").write_text("import numpy as np\nADD = np.int32(10)\n")
    (folder.path / "1" / "absolute.py").write_text("import numpy as np\nADD = np.int32(100)\n")
    from millpond.serve.repository.triton_config import parse_config_text

    await bench.servables.add(parse_config_text(NUMBERS % ("beside", 0), "config.pbtxt"), folder)
    assert (await bench.infer("beside", ONE)).outputs["OUT"].array.tolist() == [111]


async def test_files_of_a_load_request_win_over_those_of_the_folder(bench: Bench) -> None:
    from millpond.serve.repository.triton_config import parse_config_text

    source = """
    import triton_python_backend_utils as pb
    class TritonPythonModel:
        def execute(self, requests):
            return [pb.InferenceResponse([pb.Tensor("OUT", r.inputs()[0].as_numpy() * %d)]) for r in requests]
    """
    folder = bench.write("given", NUMBERS % ("given", 0), source % 2)
    folder.files["1/model.py"] = (source % 3).replace("\n    ", "\n").encode()
    await bench.servables.add(parse_config_text(NUMBERS % ("given", 0), "config.pbtxt"), folder)
    assert (await bench.infer("given", {"IN": np.array([7], np.int32)})).outputs["OUT"].array.tolist() == [21]


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


async def test_a_decoupled_model_answers_any_number_of_times_from_its_own_threads(bench: Bench) -> None:
    await bench.add(
        "repeat",
        NUMBERS % ("repeat", 0) + DECOUPLED,
        """
        import threading, time, numpy as np
        import triton_python_backend_utils as pb
        class TritonPythonModel:
            def execute(self, requests):
                for request in requests:
                    threading.Thread(target=self.answer, args=(request,), daemon=True).start()
            def answer(self, request):
                sender = request.get_response_sender()
                for value in request.inputs()[0].as_numpy():
                    sender.send(pb.InferenceResponse([pb.Tensor("OUT", np.array([value], np.int32))]))
                    time.sleep(0.01)
                sender.send(flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
                try:
                    sender.send(pb.InferenceResponse([]))
                except pb.TritonModelException as error:
                    pb.Logger.log_error(str(error))
        """,
    )

    async def ask(values: list[int]) -> list[int]:
        got = []
        async for response in bench.servables.stream(request("repeat", {"IN": np.array(values, np.int32)})):
            got += [int(tensor.array[0]) for tensor in response.outputs.values()]
        return got

    wanted = [list(range(n, n + 5)) for n in range(0, 40, 5)] + [[]]
    assert await asyncio.gather(*map(ask, wanted)) == wanted


async def test_errors_in_a_stream_are_responses(bench: Bench) -> None:
    await bench.add(
        "boom",
        NUMBERS % ("boom", 0) + DECOUPLED,
        """
        import triton_python_backend_utils as pb
        class TritonPythonModel:
            async def execute(self, requests):
                for request in requests:
                    number = int(request.inputs()[0].as_numpy()[0])
                    sender = request.get_response_sender()
                    if number == 0:
                        error = pb.TritonError("model said boom", pb.TritonError.INVALID_ARG)
                        sender.send(pb.InferenceResponse(error=error))
                        sender.send(flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
                    elif number == 1:
                        raise KeyError("gone")
        """,
    )
    stream = bench.servables.stream(request("boom", {"IN": np.array([0], np.int32)}))
    first = await anext(stream)
    assert first.error is not None
    assert (first.error.code, first.error.message, first.final) == ("invalid_argument", "model said boom", False)
    assert (await anext(stream)).final
    raised = await bench.first("boom", {"IN": np.array([1], np.int32)})
    assert raised.error is not None
    assert "KeyError: 'gone'\n\nAt:\n  boom/1/model.py" in raised.error.message
    dropped = await bench.first("boom", {"IN": np.array([2], np.int32)})
    assert dropped.error is not None
    assert dropped.error.message == "The model dropped the request without a final response."


async def test_a_model_calls_others_at_once_and_one_after_another(bench: Bench) -> None:
    await bench.add(
        "double",
        NUMBERS % ("double", 0),
        """
        import triton_python_backend_utils as pb
        class TritonPythonModel:
            def execute(self, requests):
                if requests[0].inputs()[0].as_numpy()[0] < 0:
                    raise ValueError("negative")
                return [pb.InferenceResponse([pb.Tensor("OUT", r.inputs()[0].as_numpy() * 2)]) for r in requests]
        """,
    )
    await bench.add(
        "count",
        NUMBERS % ("count", 0) + DECOUPLED,
        """
        import numpy as np
        import triton_python_backend_utils as pb
        class TritonPythonModel:
            def execute(self, requests):
                for request in requests:
                    sender = request.get_response_sender()
                    for value in range(int(request.inputs()[0].as_numpy()[0])):
                        sender.send(pb.InferenceResponse([pb.Tensor("OUT", np.array([value], np.int32))]))
                    sender.send(flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        """,
    )
    await bench.add(
        "caller",
        TEXTS % "caller",
        """
        import asyncio, json, numpy as np
        import triton_python_backend_utils as pb
        def ask(model, value, size=1):
            tensor = pb.Tensor("IN", np.full(size, value, np.int32))
            return pb.InferenceRequest(model_name=model, inputs=[tensor], requested_output_names=["OUT"])
        def number(response):
            if response.has_error():
                return response.error().message()
            return [int(v) for v in pb.get_output_tensor_by_name(response, "OUT").as_numpy()[:3]]
        class TritonPythonModel:
            async def execute(self, requests):
                seen = {
                    "once": number(ask("double", 4).exec()),
                    "large": number(ask("double", 5, 1 << 20).exec()),
                    "at once": [number(r) for r in
                                await asyncio.gather(*(ask("double", n).async_exec() for n in range(8)))],
                    "unknown": number(ask("nobody", 1).exec()),
                    "failed": number(ask("double", -1).exec()),
                    "stream": [number(r) for r in ask("count", 3).exec(decoupled=True) if r.output_tensors()],
                    "not a stream": number(ask("count", 3).exec()),
                    "ready": [pb.is_model_ready("double"), pb.is_model_ready("nobody")],
                }
                try:
                    pb.load_model("other")
                except pb.TritonModelException as error:
                    seen["load"] = str(error)
                out = pb.Tensor("OUT", np.array([json.dumps(seen).encode()], dtype=np.object_))
                return [pb.InferenceResponse([out]) for _ in requests]
        """,
    )
    answer = await bench.infer("caller", texts("go"))
    seen = json.loads(answer.outputs["OUT"].array[0])
    assert seen.pop("failed").startswith("Failed to process the request(s) for model 'double_0_0', message: ValueError")
    assert seen.pop("not a stream").startswith("Model count is using the decoupled.")
    assert seen == {
        "once": [8],
        "large": [10, 10, 10],
        "at once": [[2 * n] for n in range(8)],
        "unknown": "Request for unknown model: 'nobody' is not found",
        "stream": [[0], [1], [2]],
        "ready": [True, False],
        "load": "There is no model repository to load from.",
    }


async def test_a_model_completes_its_configuration(bench: Bench) -> None:
    await bench.add(
        "auto",
        'name: "auto" backend: "python"',
        """
        import triton_python_backend_utils as pb
        class TritonPythonModel:
            @staticmethod
            def auto_complete_config(config):
                config.add_input({"name": "IN", "data_type": "TYPE_INT32", "dims": [-1]})
                config.add_output({"name": "OUT", "data_type": "TYPE_INT32", "dims": [-1]})
                config.set_max_batch_size(8)
                config.set_dynamic_batching()
                return config
            def execute(self, requests):
                return [pb.InferenceResponse([pb.Tensor("OUT", r.inputs()[0].as_numpy() + 1)]) for r in requests]
        """,
    )
    config = bench.servables.find("auto").config
    assert (config.max_batch_size, config.inputs[0].dims, config.dynamic_batching is not None) == (8, (-1,), True)
    assert (await bench.infer("auto", {"IN": np.array([[4]], np.int32)})).outputs["OUT"].array.tolist() == [[5]]


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("raise RuntimeError('no gpu')", "RuntimeError: no gpu\n\nAt:\n  broken/1/model.py(1): <module>\n"),
        ("def f(:", "SyntaxError"),
        ("x = 1", "has no class TritonPythonModel"),
        ("import os; os._exit(3)", "exited with status 3 while it was loading"),
        (
            "class TritonPythonModel:\n  def initialize(self, args): raise KeyError('weights')\n"
            "  def execute(self, r): pass",
            "KeyError: 'weights'\n\nAt:\n  broken/1/model.py(2): initialize\n",
        ),
        ("class TritonPythonModel: pass", "does not implement `execute` method."),
    ],
)
async def test_a_broken_model_says_why_it_is_not_available(bench: Bench, source: str, text: str) -> None:
    with pytest.raises(ServableError) as caught:
        await bench.add("broken", NUMBERS % ("broken", 0), source)
    assert text in caught.value.message
    assert str(bench.folder) not in caught.value.message


async def test_finalize_runs_when_a_model_is_unloaded_and_what_it_prints_is_logged(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    await bench.add(
        "talk",
        NUMBERS % ("talk", 0),
        """
        import sys
        import triton_python_backend_utils as pb
        class TritonPythonModel:
            def execute(self, requests):
                print("on stdout")
                print("on stderr", file=sys.stderr)
                pb.Logger.log_warn("a warning")
                return [pb.InferenceResponse([pb.Tensor("OUT", r.inputs()[0].as_numpy())]) for r in requests]
            def finalize(self):
                print("finalized")
        """,
    )
    await bench.infer("talk", ONE)
    await bench.servables.remove("talk")
    await bench.servables.settled()
    lines = {(record.levelname, record.getMessage()) for record in caplog.records}
    assert {
        ("INFO", "talk_0_0: on stdout"),
        ("INFO", "talk_0_0: on stderr"),
        ("WARNING", "talk_0_0: a warning"),
        ("INFO", "talk_0_0: finalized"),
    } <= lines


async def test_metrics_of_a_model_are_published(bench: Bench) -> None:
    await bench.add(
        "counted",
        NUMBERS % ("counted", 0),
        """
        import triton_python_backend_utils as pb
        class TritonPythonModel:
            def initialize(self, args):
                family = pb.MetricFamily(name="requests_seen", description="How many.", kind=pb.MetricFamily.COUNTER)
                self.metric = family.Metric(labels={"model": "counted"})
            def execute(self, requests):
                self.metric.increment(len(requests))
                return [pb.InferenceResponse([pb.Tensor("OUT", r.inputs()[0].as_numpy())]) for r in requests]
        """,
    )
    for _ in range(2):
        await bench.infer("counted", ONE)
    assert [(model, update.family, update.labels, update.value) for model, update in bench.metrics] == [
        ("counted", "requests_seen", {"model": "counted"}, float(count)) for count in range(3)
    ]


async def test_a_model_knows_that_its_stream_was_cancelled(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    await bench.add(
        "endless",
        NUMBERS % ("endless", 0) + DECOUPLED,
        """
        import time
        import triton_python_backend_utils as pb
        class TritonPythonModel:
            def execute(self, requests):
                sender = requests[0].get_response_sender()
                while not sender.is_cancelled():
                    sender.send(pb.InferenceResponse([pb.Tensor("OUT", requests[0].inputs()[0].as_numpy())]))
                    time.sleep(0.005)
                print("cancelled")
                sender.send(flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        """,
    )
    stream = bench.servables.stream(request("endless", ONE))
    await anext(stream)
    await stream.aclose()  # type: ignore[attr-defined]
    async with asyncio.timeout(20):
        while "endless_0_0: cancelled" not in [record.getMessage() for record in caplog.records]:
            await asyncio.sleep(0.01)


async def test_a_sequences_id_and_flags_reach_the_model(bench: Bench) -> None:
    await bench.add(
        "seq",
        TEXTS % "seq",
        """
        import numpy as np
        import triton_python_backend_utils as pb
        class TritonPythonModel:
            def execute(self, requests):
                return [pb.InferenceResponse([pb.Tensor("OUT", np.array([repr((r.correlation_id(), r.flags()))]))])
                        for r in requests]
        """,
    )
    for sequence, seen in ((SequenceRef(42, start=True), b"(42, 1)"), (SequenceRef("a", end=True), b"('a', 2)")):
        assert (await bench.infer("seq", {}, sequence=sequence)).outputs["OUT"].array.tolist() == [seen]


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
