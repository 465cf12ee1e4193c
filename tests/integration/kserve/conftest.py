"""One server over the golden model repository for all tests of the protocol."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.triton_server import GOLDEN, TritonServer

LOADED = (
    "simple",
    "ens",
    "err",
    "llm",
    "fastertransformer",
    "repeat_int32",
    "simple_sequence",
    "simple_identity",
)


@pytest.fixture(scope="session")
def golden_server() -> Iterator[TritonServer]:
    server = TritonServer(GOLDEN / "models", LOADED)
    yield server
    server.close()
