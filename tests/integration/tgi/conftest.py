"""One real server that speaks all of TGI's ways, on a tiny random Llama, and the model itself as the oracle."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.server_process import ServerProcess
from tests.support.tiny_checkpoints import make_llama_dir

FLAGS = ("--dtype", "float32", "--cache.dtype", "float32", "--threads", "1", "--name", "tiny", "--tgi.port", "0")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama_dir(tmp_path_factory.mktemp("models") / "tiny-llama", max_position_embeddings=1024)


@pytest.fixture(scope="session")
def socket_prefix() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as directory:  # a socket's path must be short
        yield f"{directory}/shard"


@pytest.fixture(scope="session")
def server(checkpoint: Path, socket_prefix: str) -> Iterator[ServerProcess]:
    with ServerProcess(checkpoint, *FLAGS, "--tgi.shard_socket", socket_prefix) as process:
        yield process.wait_ready()
        assert process.process.poll() is None, "the server ended during the tests"


@pytest.fixture(scope="session")
def tgi_url(server: ServerProcess) -> str:
    return tgi_url_of(server)


@pytest.fixture
def http(tgi_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=tgi_url, timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def model(checkpoint: Path) -> Any:
    import transformers

    return transformers.LlamaForCausalLM.from_pretrained(checkpoint)


@pytest.fixture(scope="session")
def tokenizer(checkpoint: Path) -> Any:
    import transformers

    return transformers.PreTrainedTokenizerFast(tokenizer_file=str(checkpoint / "tokenizer.json"))


def tgi_url_of(server: ServerProcess) -> str:
    """Where the server said its TGI port is."""
    found = re.search(r"^TGI is at (\S+)$", "".join(server.lines), re.MULTILINE)
    assert found, server.lines
    return f"http://{found[1]}"
