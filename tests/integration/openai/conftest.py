"""One real server on a tiny random Llama, for every test of this folder that does not break it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from tests.support.server_process import ServerProcess
from tests.support.tiny_checkpoints import make_llama_dir

FLAGS = ("--dtype", "float32", "--threads", "1", "--scheduler.max_queue", "32", "--name", "tiny")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama_dir(tmp_path_factory.mktemp("models") / "tiny-llama", max_position_embeddings=1536)


@pytest.fixture(scope="session")
def server(checkpoint: Path) -> Iterator[ServerProcess]:
    with ServerProcess(checkpoint, *FLAGS) as process:
        yield process.wait_ready()
        assert process.process.poll() is None, "the server ended during the tests"


@pytest.fixture
def client(server: ServerProcess) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client
