"""One server process that speaks every protocol: a language model, and a repository of servables beside it."""

from __future__ import annotations

import contextlib
import re
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.support.server_process import ServerProcess
from tests.support.tiny_checkpoints import make_llama_dir

NAME = "tiny"
CACHE_BYTES = 16 << 20  # small: pages of the cache are taken as they are used, and would look like a leak
CALC = """
from collections.abc import Iterator
from typing import Annotated, NamedTuple
import numpy as np
from numpy.typing import NDArray
from millpond.serving import Servable, Shape, method

class Calc(Servable):
    max_batch_size = 8

    @method(output="sum")
    def add(self, a: Annotated[NDArray[np.float32], Shape(4)], b: Annotated[NDArray[np.float32], Shape(4)]) \\
            -> Annotated[NDArray[np.float32], Shape(4)]:
        with np.errstate(all="ignore"):
            return a + b

    @method(output="text")
    def join(self, left: str, right: str = "!") -> str:
        return left + right

    @method(output="number")
    def count(self, up_to: int) -> Iterator[int]:
        yield from range(min(up_to, 5))
"""
ECHO = """
import triton_python_backend_utils as pb
class TritonPythonModel:
    def execute(self, requests):
        return [
            pb.InferenceResponse([pb.Tensor(t.name().replace("IN", "OUT"), t.as_numpy()) for t in request.inputs()])
            for request in requests
        ]
"""
ECHO_CONFIG = """
backend: "python" max_batch_size: 4 dynamic_batching { }
input [ { name: "IN_TEXT" data_type: TYPE_STRING dims: [ -1 ] }, { name: "IN_X" data_type: TYPE_INT32 dims: [ -1 ] } ]
output [ { name: "OUT_TEXT" data_type: TYPE_STRING dims: [ -1 ] },
         { name: "OUT_X" data_type: TYPE_INT32 dims: [ -1 ] } ]
"""


@dataclass(frozen=True)
class Addresses:
    """Where the protocols are: "host:port", and the shard's "unix:" address."""

    openai: str
    tgi: str
    shard: str
    triton_http: str
    triton_grpc: str
    mindspore_rest: str
    mindspore_grpc: str


@dataclass(frozen=True)
class FuzzRoom:
    """A running server."""

    server: ServerProcess
    at: Addresses
    is_strict: bool

    def memory(self) -> int:
        """Bytes that the server and all its processes hold."""
        process = psutil.Process(self.server.process.pid)
        total = 0
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += one.memory_info().rss
        return total

    def engine(self) -> list[int]:
        """The engine's process, which must stay the same."""
        return self.server.children()


def write_models(folder: Path) -> Path:
    """Writes the repository: `calc` has methods, `echo` is a Triton model, `spare` is there to be loaded by clients."""
    for name in ("calc", "spare"):
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "1" / "servable.py").write_text(textwrap.dedent(CALC))
    (folder / "echo" / "1").mkdir(parents=True)
    (folder / "echo" / "1" / "model.py").write_text(ECHO)
    (folder / "echo" / "config.pbtxt").write_text(ECHO_CONFIG)
    (folder.parent / "secret" / "1").mkdir(parents=True)
    (folder.parent / "secret" / "1" / "servable.py").write_text(textwrap.dedent(CALC))
    return folder


@contextlib.contextmanager
def fuzz_room(folder: Path, form: str) -> Iterator[FuzzRoom]:
    """Starts the server and stops it."""
    checkpoint = make_llama_dir(folder / "tiny-llama", max_position_embeddings=1024)
    models = write_models(folder / "models")
    with tempfile.TemporaryDirectory() as sockets:  # a socket's path must be short
        flags = (
            *("--dtype", "float32", "--threads", "1", "--name", NAME, "--scheduler.max_queue", "256"),
            *("--cache.bytes", str(CACHE_BYTES)),
            *("--repository", str(models), "--repository.mode", "explicit", "--repository.load", "calc,echo"),
            *("--triton.http_port", "0", "--triton.grpc_port", "0", "--triton.form", form),
            *("--triton.max_body_bytes", str(4 << 20)),
            *("--mindspore.http_port", "0", "--mindspore.grpc_port", "0", "--mindspore.form", form),
            *("--tgi.port", "0", "--tgi.shard_socket", f"{sockets}/shard", "--tgi.form", form),
        )
        with ServerProcess(checkpoint, *flags) as server:
            server.wait_ready()
            yield FuzzRoom(server, _addresses(server, f"unix:{sockets}/shard-0"), form == "strict")


def _addresses(server: ServerProcess, shard: str) -> Addresses:
    lines = "".join(server.lines)

    def of(name: str) -> str:
        found = re.search(rf"^{name} is at (\S+)$", lines, re.MULTILINE)
        assert found, lines
        return found[1]

    return Addresses(
        server.url.removeprefix("http://"),
        of("TGI"),
        shard,
        *(of(name) for name in ("Triton HTTP", "Triton gRPC", "MindSpore REST", "MindSpore gRPC")),
    )
