"""The typed gRPC service of a user's class, called by clients that grpcio-tools generates from its proto file."""

from __future__ import annotations

import importlib.resources
import sys
import textwrap
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_tools import protoc

from millpond.serve.kserve.restrictions import read_restrictions
from millpond.serve.kserve.settings import TritonSettings
from tests.support.triton_server import TritonServer

ROOM = """
from collections.abc import Iterator
from typing import Annotated, NamedTuple
import numpy as np
from numpy.typing import NDArray
from millpond.serving import Servable, Shape, method

class Both(NamedTuple):
    sum: float
    text: str

class Room(Servable):
    max_batch_size = 4

    @method
    def add(self, a: float, b: float = 10.0) -> Both:
        "Adds two numbers."
        if a < 0:
            raise ValueError(f"{a} is negative")
        return Both(a + b, f"{a}+{b}")

    @method(output="scaled")
    def scale(self, x: Annotated[NDArray[np.float32], Shape(2, -1)], by: int) \\
            -> Annotated[NDArray[np.float32], Shape(2, -1)]:
        return x * by

    @method(output="largest")
    def largest(self, values: Annotated[NDArray[np.int8], Shape(-1)]) -> int:
        return int(values.max())

    @method(output="number")
    def count(self, up_to: int) -> Iterator[int]:
        for number in range(up_to):
            if number == 5:
                raise ValueError("only up to five")
            yield number
"""
HALF = """
import triton_python_backend_utils as pb
class TritonPythonModel:
    def execute(self, requests):
        return [
            pb.InferenceResponse([pb.Tensor("OUT.0", request.inputs()[0].as_numpy() / 2)]) for request in requests
        ]
"""
HALF_CONFIG = """
backend: "python" max_batch_size: 4
input [ { name: "IN.0" data_type: TYPE_FP16 dims: [ 2 ] } ]
output [ { name: "OUT.0" data_type: TYPE_FP16 dims: [ 2 ] } ]
"""
Generate = Callable[[TritonServer, str], tuple[Any, Any]]


def write(folder: Path) -> Path:
    (folder / "my-room" / "1").mkdir(parents=True)
    (folder / "my-room" / "1" / "servable.py").write_text(textwrap.dedent(ROOM))
    (folder / "half" / "1").mkdir(parents=True)
    (folder / "half" / "1" / "model.py").write_text(HALF)
    (folder / "half" / "config.pbtxt").write_text(HALF_CONFIG)
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    server = TritonServer(write(tmp_path_factory.mktemp("room")), ["my-room", "half"])
    yield server
    server.close()


@pytest.fixture
def generate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Generate]:
    """Generates a client from the proto file that the server shows, and returns its two modules."""
    made: list[str] = []

    def generate(server: TritonServer, model: str) -> tuple[Any, Any]:
        with urllib.request.urlopen(f"http://{server.http}/v2/docs/models/{model}/servable.proto") as answer:
            name = f"generated_{model.replace('-', '_')}"
            (tmp_path / f"{name}.proto").write_bytes(answer.read())
        include = importlib.resources.files("grpc_tools") / "_proto"
        folders = [f"-I{tmp_path}", f"-I{include}", f"--python_out={tmp_path}", f"--grpc_python_out={tmp_path}"]
        assert protoc.main(["protoc", *folders, str(tmp_path / f"{name}.proto")]) == 0
        monkeypatch.syspath_prepend(tmp_path)
        made.extend((f"{name}_pb2", f"{name}_pb2_grpc"))
        return __import__(f"{name}_pb2"), __import__(f"{name}_pb2_grpc")

    yield generate
    for name in made:
        sys.modules.pop(name, None)


def test_a_generated_client_calls_the_methods_of_a_class(server: TritonServer, generate: Generate) -> None:
    pb, services = generate(server, "my-room")
    with grpc.insecure_channel(server.grpc) as channel:
        room = services.MyRoomStub(channel)
        both = room.Add(pb.AddRequest(a=1.5, b=2), timeout=60)
        assert (both.sum, both.text) == (3.5, b"1.5+2.0")
        assert room.Add(pb.AddRequest(a=1), timeout=60).sum == 11.0  # a default of the class
        assert room.Add(pb.AddRequest(a=1, b=0), timeout=60).sum == 1.0  # is not taken for what was sent as 0
        asked = pb.ScaleRequest(x=pb.FloatTensor(shape=[2, 3], data=[1, 2, 3, 4, 5, 6]), by=-2)
        scaled = room.Scale(asked, timeout=60).scaled
        assert (list(scaled.shape), list(scaled.data)) == ([2, 3], [-2.0, -4.0, -6.0, -8.0, -10.0, -12.0])
        assert room.Largest(pb.LargestRequest(values=[3, -128, 127]), timeout=60).largest == 127
        assert [answer.number for answer in room.Count(pb.CountRequest(up_to=3), timeout=60)] == [0, 1, 2]


def test_many_at_a_time_get_their_own_answers(server: TritonServer, generate: Generate) -> None:
    pb, services = generate(server, "my-room")
    with grpc.insecure_channel(server.grpc) as channel:
        room = services.MyRoomStub(channel)
        pending = [room.Add.future(pb.AddRequest(a=number, b=0.5), timeout=60) for number in range(50)]
        assert [call.result().sum for call in pending] == [number + 0.5 for number in range(50)]


def test_a_model_without_methods_has_one_that_takes_its_batch(server: TritonServer, generate: Generate) -> None:
    pb, services = generate(server, "half")
    with grpc.insecure_channel(server.grpc) as channel:
        half = services.HalfStub(channel)
        tensor = pb.FloatTensor(shape=[2, 2], data=[1, 2, 3, 0.5])
        answer = half.Infer(pb.InferRequest(IN_0=tensor), timeout=60)
    assert np.array(answer.OUT_0.data).reshape(answer.OUT_0.shape).tolist() == [[0.5, 1.0], [1.5, 0.25]]


@pytest.mark.parametrize(
    ("method", "values", "status", "words"),
    [
        ("Add", {"a": -1}, grpc.StatusCode.INTERNAL, "-1.0 is negative"),
        ("Scale", {"by": 1}, grpc.StatusCode.INVALID_ARGUMENT, "'x' of model 'my-room' are missing"),
        ("Scale", {"x": ([2, 2], [1.0])}, grpc.StatusCode.INVALID_ARGUMENT, "1 elements"),
        ("Scale", {"x": ([-1, -1], [1.0])}, grpc.StatusCode.INVALID_ARGUMENT, "negative dimension"),
        ("Scale", {"x": ([2**62, 2**62], [])}, grpc.StatusCode.INVALID_ARGUMENT, "0 elements"),
        ("Scale", {"x": ([1] * 50, [1.0])}, grpc.StatusCode.INVALID_ARGUMENT, "more than 32"),
        ("Largest", {"values": [200]}, grpc.StatusCode.INVALID_ARGUMENT, "no INT8"),
        ("Count", {"up_to": 9}, grpc.StatusCode.INTERNAL, "only up to five"),
    ],
)
def test_what_is_wrong_has_its_status_and_reason(
    server: TritonServer, generate: Generate, method: str, values: dict[str, Any], status: Any, words: str
) -> None:
    pb, services = generate(server, "my-room")
    if isinstance(values.get("x"), tuple):
        shape, data = values["x"]
        values = {"x": pb.FloatTensor(shape=shape, data=data), "by": 1}
    with grpc.insecure_channel(server.grpc) as channel:
        call = getattr(services.MyRoomStub(channel), method)
        request = getattr(pb, f"{method}Request")(**values)
        with pytest.raises(grpc.RpcError) as caught:
            list(call(request, timeout=60))
    assert caught.value.code() is status, caught.value.details()
    assert words in caught.value.details()


@pytest.mark.parametrize(
    ("path", "data", "status"),
    [
        ("my_room.MyRoom/Nothing", b"", grpc.StatusCode.UNIMPLEMENTED),
        ("nowhere.Nowhere/Add", b"", grpc.StatusCode.UNIMPLEMENTED),
        ("my_room.MyRoom", b"", grpc.StatusCode.UNIMPLEMENTED),
        ("my_room.MyRoom/Add", b"\xff\xff", grpc.StatusCode.INTERNAL),
        ("my_room.MyRoom/Count", b"\xff\xff", grpc.StatusCode.INTERNAL),
    ],
)
def test_calls_of_nothing_and_broken_messages_are_refused(
    server: TritonServer, path: str, data: bytes, status: Any
) -> None:
    with grpc.insecure_channel(server.grpc) as channel, pytest.raises(grpc.RpcError) as caught:
        list(channel.unary_stream(f"/millpond.servables.{path}")(data, timeout=60))
    assert caught.value.code() is status


def test_a_method_that_changes_is_served_as_it_is_now(tmp_path: Path, generate: Generate) -> None:
    folder = write(tmp_path / "models")
    settings = TritonSettings(
        grpc_restrictions=read_restrictions("inference:k=v", prefix="triton-grpc-protocol-", param="")
    )
    server = TritonServer(folder, ["half"], settings)
    key = (("triton-grpc-protocol-k", "v"),)
    try:
        pb, services = generate(server, "half")
        asked = pb.InferRequest(IN_0=pb.FloatTensor(shape=[1, 2], data=[1, 2]))
        with grpc.insecure_channel(server.grpc) as channel:
            half = services.HalfStub(channel)
            with pytest.raises(grpc.RpcError) as caught:
                half.Infer(asked, timeout=60)
            assert "restricted" in caught.value.details()
            assert list(half.Infer(asked, timeout=60, metadata=key).OUT_0.data) == [0.5, 1.0]
            config = (folder / "half" / "config.pbtxt").read_text()
            (folder / "half" / "config.pbtxt").write_text(config.replace("TYPE_FP16", "TYPE_FP64"))
            server.run(lambda: server.repository.load("half"))
            raw = channel.unary_unary("/millpond.servables.half.Half/Infer")
            doubles = np.array([1.0, 3.0]).tobytes()
            message = b"\x0a\x16\x0a\x02\x01\x02\x12\x10" + doubles
            assert np.array([0.5, 1.5]).tobytes() in raw(message, timeout=60, metadata=key)
            server.run(lambda: server.repository.unload("half"))
            with pytest.raises(grpc.RpcError) as caught:
                half.Infer(asked, timeout=60, metadata=key)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    finally:
        server.close()
