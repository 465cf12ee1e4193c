"""Servers as users start them: a model repository alone, under Triton's command, and beside a language model."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.server_process import ServerProcess
from tests.support.tiny_checkpoints import make_llama_dir
from tests.support.triton_server import GOLDEN

MODELS = str(GOLDEN / "models")
_ADDRESS = re.compile(r"(127\.0\.0\.1:\d+)\s*$")


@contextlib.contextmanager
def started(*command: str, lines: int) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """Starts a command and waits for its first lines."""
    process = subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        text = ""
        deadline = time.monotonic() + 60
        while text.count("\n") < lines:
            assert select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0], "too slow"
            data = os.read(process.stdout.fileno(), 4096).decode()
            assert data, process.stderr.read()
            text += data
        yield process, text.splitlines()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
        process.stdout.close()
        process.stderr.close()


def ask(address: str, path: str, body: object = None) -> object:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://{address}{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        text = response.read()
    return json.loads(text) if text else None


def test_a_repository_is_served_and_drained() -> None:
    command = (
        *("-m", "millpond", "serve", "--repository", MODELS, "--repository.mode", "explicit"),
        *("--repository.load", "simple", "--triton.http_port", "0", "--triton.metrics_port", "0"),
    )
    with started(*command, lines=2) as (process, lines):
        assert [line.split(" is at ")[0] for line in lines] == ["Triton HTTP", "Triton metrics"]
        http, metrics = (_ADDRESS.search(line)[1] for line in lines)  # type: ignore[index]
        tensor = {"shape": [1, 16], "datatype": "INT32", "data": list(range(16))}
        answer = ask(
            http,
            "/v2/models/simple/infer",
            {"inputs": [{"name": "INPUT0", **tensor}, {"name": "INPUT1", **tensor}]},
        )
        assert answer["outputs"][0]["data"][15] == 30  # type: ignore[index]  # fails here if it is not so
        with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=30) as response:
            page = response.read().decode()
        assert 'nv_inference_request_success{model="simple",version="1"} 1' in page
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_tritonserver_takes_tritons_flags_and_says_what_triton_says() -> None:
    code = "from millpond.cli.tritonserver import main; main()"
    command = (
        *("-c", code, f"--model-repository={MODELS}", "--model-control-mode=explicit", "--load-model=simple_identity"),
        *("--http-port=0", "--grpc-port=0", "--metrics-port=0", "--allow-gpu-metrics=false", "--log-verbose=1"),
    )
    with started(*command, lines=3) as (process, lines):
        assert [line.rpartition(" ")[0] for line in lines] == [
            "Started GRPCInferenceService at",
            "Started HTTPService at",
            "Started Metrics Service at",
        ]
        address = _ADDRESS.search(lines[1])[1]  # type: ignore[index]  # fails here if it is not so
        assert ask(address, "/v2/health/ready") is None
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


def test_a_model_that_cannot_be_loaded_ends_tritonserver(tmp_path: Path) -> None:
    (tmp_path / "broken" / "1").mkdir(parents=True)
    (tmp_path / "broken" / "config.pbtxt").write_text('backend: "nothing"')
    code = "from millpond.cli.tritonserver import main; main()"
    ports = ("--http-port=0", "--grpc-port=0", "--metrics-port=0")
    ended = subprocess.run(
        [sys.executable, "-c", code, f"--model-repository={tmp_path}", *ports],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 1
    assert "broken cannot be served" in ended.stderr
    assert "nothing" in ended.stderr


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama_dir(tmp_path_factory.mktemp("models") / "tiny-llama")


def test_a_language_model_answers_on_its_own_port_and_as_a_servable(tiny: Path) -> None:
    flags = ("--dtype", "float32", "--threads", "1", "--name", "tiny", "--triton.http_port", "0")
    with ServerProcess(tiny, *flags) as server:
        server.wait_ready()
        line = next(line for line in server.lines if line.startswith("Triton HTTP is at"))
        address = _ADDRESS.search(line)[1]  # type: ignore[index]  # fails here if it is not so
        asked = {"text_input": "hello", "sampling_parameters": '{"max_tokens": "4", "temperature": "0"}'}
        answer = ask(address, "/v2/models/tiny/generate", {**asked, "exclude_input_in_output": True})
        own = ask(
            server.url.removeprefix("http://"),
            "/v1/completions",
            {"model": "tiny", "prompt": "hello", "max_tokens": 4, "temperature": 0},
        )
        assert answer["text_output"] == own["choices"][0]["text"]  # type: ignore[index]  # fails here if it is not so
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
