"""`TritonPythonModel` files in real worker processes, asked through the registry."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest

from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.messages import SequenceRef
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
