"""`millpond serve` with MindSpore's ports: the article's `:generated_stream` gives the tokens of the OpenAI port."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from millpond.compat.mindspore_serving.client import Client
from tests.support.server_process import ServerProcess
from tests.support.tiny_checkpoints import make_llama_dir

FLAGS = ("--dtype", "float32", "--threads", "1", "--name", "LLaMA")
PROMPT = "hello there"
FIELDS = {"temperature": 0.0, "max_tokens": 200}  # so many that not all can come in one piece


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    checkpoint: Path = make_llama_dir(tmp_path_factory.mktemp("models") / "tiny-llama")
    flags = ("--mindspore.http_port", "0", "--mindspore.grpc_port", "0", "--mindspore.form", "strict")
    with ServerProcess(checkpoint, *FLAGS, *flags) as process:
        yield process.wait_ready()


def address(server: ServerProcess, name: str) -> str:
    lines = [re.fullmatch(rf"{name} is at (\S+)", line.strip()) for line in server.lines]
    return next(match[1] for match in lines if match)


@pytest.fixture(scope="module")
def expected(server: ServerProcess) -> str:
    reply = httpx.post(
        f"{server.url}/v1/completions", json={"model": "LLaMA", "prompt": PROMPT, **FIELDS}, timeout=60
    )
    text: str = reply.json()["choices"][0]["text"]
    assert text
    return text


def test_rest_streams_the_same_text(server: ServerProcess, expected: str) -> None:
    url = f"http://{address(server, 'MindSpore REST')}/model/LLaMA:generated_stream"
    pieces: list[str] = []
    body = {"instances": {"inputs": PROMPT, **FIELDS}}
    with httpx.stream("POST", url, json=body, timeout=60) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        for line in reply.iter_lines():
            if line.startswith("data: {"):
                instance: dict[str, Any] = json.loads(line.removeprefix("data: "))["instances"][0]
                pieces.append(instance["text_output"])
    assert "".join(pieces) == expected
    assert len(pieces) > 1


def test_generate_gives_the_same_text_at_once(server: ServerProcess, expected: str) -> None:
    url = f"http://{address(server, 'MindSpore REST')}/model/LLaMA:generate"
    reply = httpx.post(url, json={"instances": [{"inputs": PROMPT, **FIELDS}] * 2}, timeout=60)
    assert [instance["text_output"] for instance in reply.json()["instances"]] == [expected] * 2


def test_the_client_streams_the_same_text(server: ServerProcess, expected: str) -> None:
    with Client(address(server, "MindSpore gRPC"), "LLaMA", "generated_stream") as client:
        pieces = [item["text_output"] for item in client.infer_stream({"text_input": PROMPT, **FIELDS})]
    assert "".join(pieces) == expected


def test_the_strict_form_has_statuses(server: ServerProcess) -> None:
    base = f"http://{address(server, 'MindSpore REST')}/model"
    assert httpx.post(f"{base}/other:generate", json={"instances": {"inputs": "a"}}, timeout=60).status_code == 404
    assert httpx.post(f"{base}/LLaMA:generated_stream", json={"instances": {"x": "a"}}, timeout=60).status_code == 400
    body = {"instances": {"inputs": "a", "temperature": -1.0}}
    reply = httpx.post(f"{base}/LLaMA:generated_stream", json=body, timeout=60)
    assert "temperature" in reply.text
