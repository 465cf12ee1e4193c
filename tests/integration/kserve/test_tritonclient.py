"""Triton's own Python client against our ports: HTTP, gRPC, asyncio, streams, shared memory."""

from __future__ import annotations

import queue
import warnings
from collections.abc import Iterator
from typing import Any

import grpc as plain_grpc
import numpy as np
import pytest

from tests.support.triton_server import TritonServer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import tritonclient.grpc as grpc_client
    import tritonclient.grpc.aio as grpc_aio
    import tritonclient.http as http_client
    import tritonclient.http.aio as http_aio
    from tritonclient.grpc import service_pb2, service_pb2_grpc
    from tritonclient.utils import InferenceServerException, shared_memory

ONE = np.arange(16, dtype=np.int32).reshape(1, 16)
TWO = np.full((1, 16), 3, dtype=np.int32)


@pytest.fixture
def http(golden_server: TritonServer) -> Iterator[Any]:
    client = http_client.InferenceServerClient(golden_server.http)
    yield client
    client.close()


@pytest.fixture
def grpc(golden_server: TritonServer) -> Iterator[Any]:
    client = grpc_client.InferenceServerClient(golden_server.grpc)
    yield client
    client.close()


@pytest.fixture(params=["http", "grpc"])
def both(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    module = http_client if request.param == "http" else grpc_client
    return module, request.getfixturevalue(request.param)


def inputs(module: Any, **options: Any) -> list[Any]:
    made = []
    for name, array in (("INPUT0", ONE), ("INPUT1", TWO)):
        item = module.InferInput(name, list(array.shape), "INT32")
        item.set_data_from_numpy(array, **options)
        made.append(item)
    return made


def test_both_forms_add_and_subtract(both: tuple[Any, Any]) -> None:
    module, client = both
    result = client.infer("simple", inputs(module), request_id="r7")
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), ONE + TWO)
    np.testing.assert_array_equal(result.as_numpy("OUTPUT1"), ONE - TWO)
    response = result.get_response()
    assert (response["id"] if isinstance(response, dict) else response.id) == "r7"


def test_both_forms_describe_the_server_and_its_models(both: tuple[Any, Any]) -> None:
    module, client = both
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("simple")
    assert not client.is_model_ready("nope")
    options = {"as_json": True} if module is grpc_client else {}
    assert client.get_server_metadata(**options)["name"] == "triton"
    assert client.get_model_metadata("simple", **options)["inputs"][1]["name"] == "INPUT1"
    config = client.get_model_config("simple", **options)
    assert config.get("config", config)["max_batch_size"] == 8
    before = client.get_inference_statistics("simple", **options)["model_stats"][0]
    client.infer("simple", inputs(module))
    after = client.get_inference_statistics("simple", **options)["model_stats"][0]
    assert int(after["inference_count"]) == int(before.get("inference_count", 0)) + 1


def test_both_forms_load_and_unload(both: tuple[Any, Any]) -> None:
    _, client = both
    client.load_model("simple_int8")
    assert client.is_model_ready("simple_int8")
    index = client.get_model_repository_index()
    entries = index if isinstance(index, list) else [{"name": m.name, "state": m.state} for m in index.models]
    assert {"simple_int8": "READY"}.items() <= {e["name"]: e.get("state") for e in entries}.items()
    client.unload_model("simple_int8")
    assert not client.is_model_ready("simple_int8")
    with pytest.raises(InferenceServerException, match="failed to load 'nope', failed to poll from model repository"):
        client.load_model("nope")


def test_a_model_can_be_loaded_from_a_request(both: tuple[Any, Any]) -> None:
    module, client = both
    source = (
        b"import triton_python_backend_utils as pb\n"
        b"class TritonPythonModel:\n"
        b"    def execute(self, requests):\n"
        b"        return [pb.InferenceResponse([pb.Tensor('Y', r.inputs()[0].as_numpy() * 2)]) for r in requests]\n"
    )
    config = (
        '{"backend": "python", "input": [{"name": "X", "data_type": "TYPE_FP32", "dims": [2]}],'
        ' "output": [{"name": "Y", "data_type": "TYPE_FP32", "dims": [2]}]}'
    )
    client.load_model("brought", config=config, files={"file:1/model.py": source})
    item = module.InferInput("X", [2], "FP32")
    item.set_data_from_numpy(np.array([1.5, -2], dtype=np.float32))
    assert client.infer("brought", [item]).as_numpy("Y").tolist() == [3.0, -4.0]
    client.unload_model("brought")


@pytest.mark.parametrize("is_binary", [True, False])
@pytest.mark.parametrize("coding", [None, "gzip", "deflate"])
def test_http_takes_and_gives_json_and_binary_compressed_or_not(http: Any, is_binary: bool, coding: str | None) -> None:
    wanted = [http_client.InferRequestedOutput("OUTPUT0", binary_data=is_binary)]
    result = http.infer(
        "simple",
        inputs(http_client, binary_data=is_binary),
        outputs=wanted,
        request_compression_algorithm=coding,
        response_compression_algorithm=coding,
    )
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), ONE + TWO)
    assert result.as_numpy("OUTPUT1") is None


def test_texts_come_back_as_they_went(both: tuple[Any, Any]) -> None:
    module, client = both
    array = np.array([["a", "", "\u00fc\u4e2d", "x" * 1000]], dtype=object)
    item = module.InferInput("INPUT0", list(array.shape), "BYTES")
    item.set_data_from_numpy(array)
    answered = client.infer("simple_identity", [item]).as_numpy("OUTPUT0")
    assert [text.decode() for text in answered[0]] == array[0].tolist()


def test_classification_gives_values_and_indices(both: tuple[Any, Any]) -> None:
    module, client = both
    result = client.infer("simple", inputs(module), outputs=[module.InferRequestedOutput("OUTPUT0", class_count=2)])
    assert result.as_numpy("OUTPUT0").tolist() == [[b"18:15", b"17:14"]]


def test_asynchronous_requests_are_answered_each_with_its_own(http: Any, grpc: Any) -> None:
    pending = [http.async_infer("simple", inputs(http_client)) for _ in range(8)]
    for item in pending:
        np.testing.assert_array_equal(item.get_result().as_numpy("OUTPUT0"), ONE + TWO)
    done: queue.Queue[tuple[Any, Any]] = queue.Queue()
    for _ in range(8):
        grpc.async_infer("simple", inputs(grpc_client), callback=lambda result, error: done.put((result, error)))
    for _ in range(8):
        result, error = done.get(timeout=30)
        assert error is None
        np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), ONE + TWO)


async def test_asyncio_clients(golden_server: TritonServer) -> None:
    async with http_aio.InferenceServerClient(golden_server.http) as client:
        assert await client.is_server_ready()
        result = await client.infer("simple", inputs(http_client))
        np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), ONE + TWO)
    async with grpc_aio.InferenceServerClient(golden_server.grpc) as client:
        result = await client.infer("simple", inputs(grpc_client))
        np.testing.assert_array_equal(result.as_numpy("OUTPUT1"), ONE - TWO)


def test_a_decoupled_model_streams_any_number_of_responses(grpc: Any) -> None:
    done: queue.Queue[tuple[Any, Any]] = queue.Queue()
    grpc.start_stream(callback=lambda result, error: done.put((result, error)))
    items = []
    for name, array in (
        ("IN", np.array([5, 6, 7], dtype=np.int32)),
        ("DELAY", np.zeros(3, dtype=np.uint32)),
        ("WAIT", np.zeros(1, dtype=np.uint32)),
    ):
        item = grpc_client.InferInput(name, list(array.shape), "INT32" if name == "IN" else "UINT32")
        item.set_data_from_numpy(array)
        items.append(item)
    grpc.async_stream_infer("repeat_int32", items, request_id="s", enable_empty_final_response=True)
    values = []
    while True:
        result, error = done.get(timeout=30)
        assert error is None
        response = result.get_response()
        assert response.id == "s"
        if result.as_numpy("OUT") is not None:
            values.append(int(result.as_numpy("OUT")[0]))
        if response.parameters["triton_final_response"].bool_param:
            break
    grpc.stop_stream()
    assert values == [5, 6, 7]


def test_a_sequence_keeps_to_its_rules(both: tuple[Any, Any]) -> None:
    module, client = both
    answers = []
    for at, value in enumerate((10, 20, 30)):
        item = module.InferInput("INPUT", [1, 1], "INT32")
        item.set_data_from_numpy(np.array([[value]], dtype=np.int32))
        result = client.infer("simple_sequence", [item], sequence_id=77, sequence_start=at == 0, sequence_end=at == 2)
        answers.append(int(result.as_numpy("OUTPUT")[0, 0]))
    assert answers == [11, 20, 30]
    item = module.InferInput("INPUT", [1, 1], "INT32")
    item.set_data_from_numpy(np.array([[1]], dtype=np.int32))
    with pytest.raises(InferenceServerException, match="non-zero or non-empty correlation ID"):
        client.infer("simple_sequence", [item])
    with pytest.raises(InferenceServerException, match="must specify the START flag on the first request"):
        client.infer("simple_sequence", [item], sequence_id=2000)


def test_tensors_pass_through_shared_memory(both: tuple[Any, Any]) -> None:
    module, client = both
    size = ONE.nbytes
    given = shared_memory.create_shared_memory_region("given", "/kserve_test_given", 2 * size)
    taken = shared_memory.create_shared_memory_region("taken", "/kserve_test_taken", 2 * size)
    try:
        shared_memory.set_shared_memory_region(given, [ONE, TWO])
        client.register_system_shared_memory("given", "/kserve_test_given", 2 * size)
        client.register_system_shared_memory("taken", "/kserve_test_taken", 2 * size)
        items, wanted = [], []
        for at, name in enumerate(("0", "1")):
            item = module.InferInput(f"INPUT{name}", [1, 16], "INT32")
            item.set_shared_memory("given", size, at * size)
            items.append(item)
            output = module.InferRequestedOutput(f"OUTPUT{name}")
            output.set_shared_memory("taken", size, at * size)
            wanted.append(output)
        result = client.infer("simple", items, outputs=wanted)
        assert result.get_output("OUTPUT1") is not None
        found = shared_memory.get_contents_as_numpy(taken, np.int32, [2, 16])
        np.testing.assert_array_equal(found, np.concatenate([ONE + TWO, ONE - TWO]))
        status = client.get_system_shared_memory_status()
        assert len(status if isinstance(status, list) else status.regions) == 2
    finally:
        client.unregister_system_shared_memory()
        shared_memory.destroy_shared_memory_region(given)
        shared_memory.destroy_shared_memory_region(taken)


def test_settings_can_be_read_and_changed(both: tuple[Any, Any]) -> None:
    _, client = both
    try:
        client.update_trace_settings(model_name="simple", settings={"trace_rate": "7"})
        own = client.get_trace_settings("simple")
        rate = own["trace_rate"] if isinstance(own, dict) else own.settings["trace_rate"].value[0]
        assert rate == "7"
        client.update_log_settings({"log_verbose_level": 1})
        logs = client.get_log_settings()
        level = logs["log_verbose_level"] if isinstance(logs, dict) else logs.settings["log_verbose_level"].uint32_param
        assert level == 1
    finally:
        client.update_trace_settings(model_name="simple", settings={"trace_rate": None})
        client.update_log_settings({"log_verbose_level": 0})


def test_explicit_contents_are_taken_as_raw_ones_are(golden_server: TritonServer) -> None:
    """As `grpc_explicit_int_content_client.py` asks: by the stub, with typed values in the message."""
    with plain_grpc.insecure_channel(golden_server.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = service_pb2.ModelInferRequest(model_name="simple", id="my request id")
        for name, array in (("INPUT0", ONE), ("INPUT1", TWO)):
            item = request.inputs.add(name=name, datatype="INT32", shape=[1, 16])
            item.contents.int_contents[:] = array.ravel().tolist()
        for name in ("OUTPUT0", "OUTPUT1"):
            request.outputs.add(name=name)
        for _ in range(3):
            response = stub.ModelInfer(request, timeout=30)
            assert (response.id, response.model_name) == ("my request id", "simple")
            values = [np.frombuffer(raw, np.int32).tolist() for raw in response.raw_output_contents]
            assert values == [(ONE + TWO).ravel().tolist(), (ONE - TWO).ravel().tolist()]


async def test_asyncio_streams_carry_sequences(golden_server: TritonServer) -> None:
    """As `simple_grpc_aio_sequence_stream_infer_client.py` asks: two sequences on one stream."""
    values = (11, 7, 5, 3)

    async def requests() -> Any:
        for index, value in enumerate(values):
            for sequence, sign in ((2007, 1), (2008, -1)):
                item = grpc_aio.InferInput("INPUT", [1, 1], "INT32")
                item.set_data_from_numpy(np.array([[sign * value]], np.int32))
                yield {
                    "model_name": "simple_sequence",
                    "inputs": [item],
                    "outputs": [grpc_aio.InferRequestedOutput("OUTPUT")],
                    "request_id": f"{sequence}_{index}",
                    "sequence_id": sequence,
                    "sequence_start": index == 0,
                    "sequence_end": index == len(values) - 1,
                }

    found: dict[str, int] = {}
    async with grpc_aio.InferenceServerClient(golden_server.grpc) as client:
        async for result, error in client.stream_infer(requests()):
            assert error is None
            found[result.get_response().id] = int(result.as_numpy("OUTPUT")[0][0])
    assert sorted(found) == sorted(f"{sequence}_{index}" for sequence in (2007, 2008) for index in range(4))
    assert [found[f"2007_{index}"] for index in range(4)] == [12, 7, 5, 3]  # the model adds 1 where a sequence starts
    assert [found[f"2008_{index}"] for index in range(4)] == [-10, -7, -5, -3]


def test_a_path_that_is_too_long_is_refused_and_the_client_goes_on(http: Any) -> None:
    """A name longer than a head may be, or made of slashes, names no model."""
    for name in ("a" * 100_000, "/" * 5_000, "../" * 2_000):
        with pytest.raises(InferenceServerException):
            http.get_model_metadata(name)
        assert http.is_server_live()
