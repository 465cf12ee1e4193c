"""What a request with tensors costs at each step between a socket and a model, one client that waits for each answer.

    python -m bench.serving.tensor_models_ladder [--triton VENV] [--rounds 5] [--seconds 0.5] [--json FILE]

The same bytes, clients and machine at every step, in turns:

    function    the model's `execute`, called
    echo        a process that reads a request and writes an answer: what sockets and wake-ups cost
    grpc echo   the same with the frames of gRPC: its client reads and writes more of them
    loop echo   the same through uvloop, the event loop the server has
    hop echo    and through a second process over a socket pair, as a model in a worker is
    inline      Millpond with the model in its own process: the protocol and the registry
    millpond    Millpond with `model.py` in a worker
    + client    the same as tritonclient sees it (its own cost is in it)
    triton      a real Triton's Python back end, with --triton

What a proxy adds is its step less its protocol's echo (a client and a socket are there without it too) and less the
function. The bar is 150 us at p50. Prints a table and that difference; `--json` keeps all.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import json
import os
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import uvloop

from bench.facts import describe_machine
from bench.serving.tensor_models import direct_call
from bench.serving.tensor_models_folder import Case, write_folder
from bench.serving.tensor_models_load import Client, GrpcClient, HttpClient, run
from bench.serving.triton_pair import Server
from millpond.serve.grpc.http2 import frames
from millpond.serve.grpc.http2.heads import ANSWER as ANSWER_HEADERS
from millpond.serve.grpc.http2.heads import TRAILERS_OK

METHOD = "/inference.GRPCInferenceService/ModelInfer"
CASE = Case("identity", 1)
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 214\r\n\r\n" + b"x" * 214
OUTPUT_BYTES = 96  # of an answer over gRPC
ECHOES = ("echo", "grpc echo", "loop echo", "hop echo")
Step = Callable[[], Client]


def echo(size: int) -> None:
    """Answers every `size` bytes, blocking."""
    listening = socket.create_server(("127.0.0.1", 0))
    print(listening.getsockname()[1], flush=True)
    while True:
        connection, _ = listening.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        have = 0
        with contextlib.suppress(ConnectionError):
            while data := connection.recv(65536):
                have += len(data)
                if have >= size:
                    have -= size
                    connection.sendall(ANSWER)


def grpc_echo() -> None:
    """Answers every call as gRPC is answered, blocking."""
    begin = frames.HEADERS, frames.END_HEADERS
    end = frames.HEADERS, frames.END_HEADERS | frames.END_STREAM
    body = struct.pack(">BI", 0, OUTPUT_BYTES) + b"x" * OUTPUT_BYTES
    listening = socket.create_server(("127.0.0.1", 0))
    print(listening.getsockname()[1], flush=True)
    while True:
        connection, _ = listening.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(frames.frame(frames.WINDOW_UPDATE, 0, 0, frames.word(frames.LARGEST_WINDOW - (1 << 16))))
        have = b""
        with contextlib.suppress(ConnectionError):
            while data := connection.recv(65536):
                have = (have + data).removeprefix(frames.PREFACE)
                while len(have) >= frames.HEAD_BYTES:
                    high, low, kind, flags, stream = frames.HEAD.unpack_from(have)
                    size = frames.HEAD_BYTES + (high << 16 | low)
                    if len(have) < size:
                        break
                    have = have[size:]
                    if kind == frames.DATA and flags & frames.END_STREAM:
                        middle = frames.frame(frames.DATA, 0, stream, body)
                        first, last = (
                            frames.frame(*begin, stream, ANSWER_HEADERS),
                            frames.frame(*end, stream, TRAILERS_OK),
                        )
                        connection.sendall(first + middle + last)


class LoopEcho(asyncio.Protocol):
    """Answers requests on the event loop, itself or after a second process has."""

    def __init__(self, size: int, hop: HopEcho | None) -> None:
        self._size = size
        self._have = 0
        self._hop = hop
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._have += len(data)
        if self._have < self._size:
            return
        self._have -= self._size
        if self._hop is None:
            self.transport.write(ANSWER)
        else:
            self._hop.waiting = self.transport
            self._hop.transport.write(data[:120])


class HopEcho(asyncio.Protocol):
    """The end of a socket pair whose other end a process reads and writes, blocking."""

    def __init__(self) -> None:
        self.waiting: Any = None
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if not self.waiting.is_closing():
            self.waiting.write(ANSWER)


async def loop_echo(size: int, *, hops: bool) -> None:
    """Serves echoes for ever."""
    loop = asyncio.get_running_loop()
    hop = None
    if hops:
        hop = HopEcho()
        ours, theirs = socket.socketpair()
        if not os.fork():
            ours.close()
            while data := theirs.recv(65536):
                theirs.sendall(data)
            os._exit(0)
        theirs.close()
        ours.setblocking(False)
        await loop.create_unix_connection(lambda: hop, sock=ours)
    server = await loop.create_server(lambda: LoopEcho(size, hop), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()


def run_echo(kind: str) -> None:
    """The process of one echo."""
    size = len(CASE.http(10000))
    if kind == "echo":
        echo(size)
    if kind == "grpc echo":
        grpc_echo()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(loop_echo(size, hops=kind == "hop echo"))


@contextlib.contextmanager
def started(*arguments: str) -> Iterator[list[int]]:
    """A process that prints its ports first."""
    process = subprocess.Popen([sys.executable, "-m", *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield [int(word) for word in process.stdout.readline().split()]
    finally:
        process.kill()
        process.wait()


def http(port: int) -> Step:
    return functools.partial(HttpClient, port, CASE.http(10000))


def grpc(port: int) -> Step:
    return functools.partial(GrpcClient, port, METHOD, CASE.message())


def through_tritonclient(protocol: str, port: int, seconds: float) -> list[float]:
    """What the public client sees."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tritonclient.grpc as grpc_client
        import tritonclient.http as http_client
    module: Any = http_client if protocol == "http" else grpc_client
    client = module.InferenceServerClient(f"127.0.0.1:{port}")
    array = CASE.arrays()["IN"]
    given = module.InferInput("IN", list(array.shape), "FP32")
    given.set_data_from_numpy(array)
    wanted = [module.InferRequestedOutput("OUT")]
    found: list[float] = []
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        client.infer("identity", [given], outputs=wanted)
        found.append(time.perf_counter() - began)
    client.close()
    return found[len(found) // 10 :]


def called(call: Callable[[], object]) -> list[float]:
    """What the model's function takes."""
    found = []
    for _ in range(2000):
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return found


def p50_us(latencies: list[float]) -> float:
    return statistics.median(latencies) * 1e6


def one_round(steps: dict[str, Step], servers: dict[str, Server], call: Callable[[], object], seconds: float) -> Any:
    """Returns the p50 of every step."""
    found = {"function": p50_us(called(call))}
    for name, make in steps.items():
        found[name] = p50_us(run(make, 1, seconds / 5, seconds)[0].latencies)
    for name, server in servers.items():
        for protocol, port in (("http", server.peer.http), ("grpc", server.peer.grpc)):
            found[f"{name} {protocol} + client"] = p50_us(through_tritonclient(protocol, port, seconds))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--triton", type=Path, help="Virtual environment with nvidia-pytriton 0.7.0.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="Of every measurement.")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--echo", choices=ECHOES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.echo:
        run_echo(given.echo)
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        write_folder(work / "models", 5000, is_identity_alone=True)
        this = "bench.serving.tensor_models_ladder"
        echoes = {name: stack.enter_context(started(this, "--echo", name)) for name in ECHOES}
        steps = {name: (grpc if "grpc" in name else http)(*ports) for name, ports in echoes.items()}
        ports = stack.enter_context(started("bench.serving.tensor_models_inline"))
        steps |= {"inline http": http(ports[0]), "inline grpc": grpc(ports[1])}
        servers = {
            name: Server(name, given.triton or work, work / "models", work)
            for name in (["triton"] if given.triton else []) + ["millpond"]
        }
        for name, server in servers.items():
            stack.callback(server.end)
            server.start()
            server.wait()
            steps |= {f"{name} http": http(server.peer.http), f"{name} grpc": grpc(server.peer.grpc)}
        call = direct_call(work / "models" / "identity" / "1" / "model.py", CASE)
        rounds = [one_round(steps, servers, call, given.seconds) for _ in range(given.rounds)]
    report(rounds, given.json)


def report(rounds: list[dict[str, float]], file: Path | None) -> None:
    """Prints medians and what servers add."""
    medians = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    print(f"{'us':28}{'p50':>8}{'least':>8}{'most':>8}{'added':>8}")
    added = {}
    for name, value in medians.items():
        values = [one[name] for one in rounds]
        line = f"{name:28}{value:8.0f}{min(values):8.0f}{max(values):8.0f}"
        if name.startswith(("inline", "millpond", "triton")):
            own = "grpc echo" if "grpc" in name else "echo"
            added[name] = statistics.median(one[name] - one[own] - one["function"] for one in rounds)
            line += f"{added[name]:8.0f}"
        print(line)
    if file is not None:
        document = {"machine": describe_machine(), "rounds": rounds, "p50_us": medians, "added_us": added}
        file.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
