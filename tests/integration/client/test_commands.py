"""`millpond client` and `millpond repository` against servers of every protocol."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from millpond.cli.main import main
from millpond.serve.grpc.mindspore.port import MindSporeGrpcPort
from millpond.serve.http.mindspore.port import MindSporeRestPort
from millpond.serve.mindspore.dispatch import Dispatcher
from millpond.serve.servables.backend import ModelFolder, Replies
from millpond.serve.servables.config import MethodSpec, ServableConfig
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.messages import InferRequest, InferResponse
from millpond.serve.servables.tensors import Tensor
from tests.support.memory_backend import MemoryBackend, MemoryInstance
from tests.support.server_process import ServerProcess
from tests.support.tiny_checkpoints import make_llama_dir
from tests.support.triton_server import TritonServer

CONFIG = """backend: "memory"
input { name: "X" data_type: TYPE_INT32 dims: [ -1 ] }
input { name: "TEXT" data_type: TYPE_STRING dims: [ 1 ] optional: true }
output { name: "X" data_type: TYPE_INT32 dims: [ -1 ] }
output { name: "TEXT" data_type: TYPE_STRING dims: [ 1 ] }
"""


async def work(instance: MemoryInstance, requests: Sequence[InferRequest], replies: Replies) -> None:
    """Gives inputs back; one at a time where the model is decoupled; no number below 0."""
    for index, request in enumerate(requests):
        if "X" in request.inputs and (request.inputs["X"].array < 0).any():
            raise ServableError("invalid_argument", "There is no number below 0.")
        tensors = list(request.inputs.values())
        parts = [[tensor] for tensor in tensors] if instance.config.decoupled else [tensors]
        for part in parts:
            outputs: dict[str, Tensor] = {tensor.name: tensor for tensor in part}
            replies.send(index, InferResponse(instance.config.name, instance.version, outputs, final=part is parts[-1]))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """Models `echo`, `parts` (decoupled) and `spare` (not loaded) over Triton's protocol and MindSpore Serving's."""
    models = tmp_path_factory.mktemp("models")
    for name, more in (("echo", ""), ("parts", "model_transaction_policy { decoupled: true }"), ("spare", "")):
        (models / name / "1").mkdir(parents=True)
        (models / name / "config.pbtxt").write_text(CONFIG + more)
    server = TritonServer(models, ["echo", "parts"], backends={"memory": MemoryBackend(work)})
    dispatcher = Dispatcher(server.servables)
    ports = [MindSporeRestPort(dispatcher, "127.0.0.1", 0), MindSporeGrpcPort(dispatcher, "127.0.0.1:0")]
    method = ServableConfig("adder", "memory", (), (), methods=(MethodSpec("pass", ("X",), ("X",)),))
    server.run(lambda: server.servables.add(method, ModelFolder(None, 1)))
    for port in ports:
        server.run(port.start)
        server.ports[port.name] = port
    yield server
    server.close()


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def triton(server: TritonServer, is_grpc: bool) -> list[str]:
    return ["--grpc", "--url", server.grpc] if is_grpc else ["--url", f"http://{server.http}"]


@pytest.mark.parametrize("is_grpc", [False, True])
def test_triton_answers_with_tensors(server: TritonServer, is_grpc: bool, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["client", "triton", "echo", *triton(server, is_grpc), "-i", "X=[1, 2]", "-i", "TEXT=für"]

    assert main(command) == 0
    assert sorted(lines(capsys)) == ['TEXT BYTES[1] ["für"]', "X INT32[2] [1, 2]"]

    assert main([*command, "--json", "--version", "1", "-p", "priority=0"]) == 0
    assert json.loads(capsys.readouterr().out) == {"X": [1, 2], "TEXT": ["für"]}


@pytest.mark.parametrize("is_grpc", [False, True])
def test_triton_streams_every_response(server: TritonServer, is_grpc: bool, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["client", "triton", "parts", *triton(server, is_grpc), "-i", "X=[5]", "-i", "TEXT=a"]

    assert main([*command, "--stream", "--json"]) == 0
    assert [list(json.loads(line)) for line in lines(capsys)] == [["X"], ["TEXT"]]


@pytest.mark.parametrize("is_grpc", [False, True])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["absent", "-i", "X=[1]"], "unknown model"),
        (["echo", "-i", "Z=1"], "no input 'Z'"),
        (["echo", "-i", "X=[-1]"], "no number below 0"),
        (["echo", "-i", "TEXT=a"], "X"),
    ],
)
def test_triton_errors_are_a_sentence(
    server: TritonServer, is_grpc: bool, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["client", "triton", *arguments, *triton(server, is_grpc)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert words in captured.err
    assert len(captured.err.splitlines()) == 1


@pytest.mark.parametrize("is_grpc", [False, True])
def test_mindspore_answers_an_instance_a_line(
    server: TritonServer, is_grpc: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    address = server.ports["MindSpore gRPC" if is_grpc else "MindSpore REST"].address
    url = ["--grpc", "--url", address] if is_grpc else ["--url", f"http://{address}"]

    assert main(["client", "mindspore", "adder", "pass", '[{"X": [1, 2]}, {"X": [[3]]}]', *url]) == 0
    assert [json.loads(line) for line in lines(capsys)] == [{"X": [1, 2]}, {"X": [[3]]}]

    assert main(["client", "mindspore", "adder", "absent", '{"X": 1}', *url]) == 1
    assert "not available" in capsys.readouterr().err


def test_the_repository_is_listed_loaded_and_unloaded(server: TritonServer, capsys: pytest.CaptureFixture[str]) -> None:
    url = ["--url", f"http://{server.http}"]

    assert main(["repository", "ls", *url, "--ready"]) == 0
    assert [line.split()[0] for line in lines(capsys)] == ["NAME", "adder", "echo", "parts"]

    assert main(["repository", "load", "spare", *url]) == 0
    assert main(["client", "triton", "spare", *url, "-i", "X=[7]"]) == 0
    assert lines(capsys) == ["spare is loaded.", "X INT32[1] [7]"]

    assert main(["repository", "unload", "spare", *url]) == 0
    assert main(["repository", "ls", *url, "--json"]) == 0
    shown = capsys.readouterr().out.partition("\n")[2]
    assert {entry["name"]: entry["state"] for entry in json.loads(shown)}["spare"] in ("UNAVAILABLE", "UNLOADING")

    assert main(["repository", "load", "absent", *url]) == 1
    assert "failed to load 'absent'" in capsys.readouterr().err


def test_a_model_may_be_loaded_with_files_of_its_own(
    server: TritonServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = [{"name": "X", "data_type": "TYPE_INT32", "dims": [-1]}]
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"backend": "memory", "input": tensors, "output": tensors}))
    (tmp_path / "some.bin").write_bytes(b"\x00\x01")
    command = ["repository", "load", "brought", "--url", f"http://{server.http}", "--config", str(config)]

    assert main([*command, "--file", f"2/some.bin={tmp_path / 'some.bin'}"]) == 0

    server.run(lambda: server.repository.unload("brought"))
    assert lines(capsys) == ["brought is loaded."]


def test_a_prompt_is_completed_over_openai_and_tgi_alike(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("secret\n")
    model = make_llama_dir(tmp_path_factory.mktemp("openai") / "tiny")
    flags = ("--dtype", "float32", "--threads", "1", "--cache.bytes", "8MiB", "--tgi.port", "0")
    with ServerProcess(model, *flags, "--serve.api_key_file", str(keys)) as process:
        url = process.wait_ready().url
        tgi_url = "http://" + next(line.split()[-1] for line in process.lines if line.startswith("TGI is at"))
        sampling = ["--temperature", "0", "--max-tokens", "8", "--api-key-file", str(keys)]
        command = ["client", "openai", "The mill", "--url", url, *sampling]
        assert main(command) == 0
        said = capsys.readouterr().out
        assert said.strip()
        for same in (
            [*command, "--no-stream", "--model", "tiny"],
            ["client", "tgi", "The mill", "--url", tgi_url, *sampling],
            ["client", "tgi", "The mill", "--url", tgi_url, *sampling, "--no-stream"],
        ):
            assert main(same) == 0
            assert capsys.readouterr().out == said
        assert main([*command, "--chat"]) == 0
        assert capsys.readouterr().out.strip()
        assert main(["client", "openai", "The mill", "--url", url]) == 1
        assert "401" in capsys.readouterr().err
        assert main(["client", "tgi", "The mill", "--url", tgi_url, *sampling, "--min-p", "0.5"]) == 1
        assert "TGI has no parameter min_p" in capsys.readouterr().err


def test_a_server_that_is_not_there_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["client", "tgi", "Hi", "--url", "http://127.0.0.1:9"]) == 1
    assert "does not answer" in capsys.readouterr().err
    assert main(["client", "triton", "m", "--grpc", "--url", "127.0.0.1:9"]) == 1
    assert "UNAVAILABLE" in capsys.readouterr().err
    assert main(["client", "tgi", "Hi", "--url", "ftp://127.0.0.1"]) == 1
    assert "is not an HTTP address" in capsys.readouterr().err
