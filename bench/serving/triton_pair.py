"""A real Triton server and Millpond's, over copies of one model repository, each as a process of its own.

Starts, watches, restarts and ends them; knows no requests. `triton_differential` and `tensor_models` use it. The real
server is the one that the package nvidia-pytriton 0.7.0 carries, in a virtual environment of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

START_S = 600.0
STARTS = 3
NAMES = ("triton", "millpond")


@dataclass(frozen=True, slots=True)
class Peer:
    """Where one of the two servers listens."""

    name: str
    http: int
    grpc: int


@dataclass(slots=True)
class Server:
    """One of the two servers: "triton" from the virtual environment `triton`, or ours."""

    name: str
    triton: Path
    repository: Path
    work: Path
    flags: tuple[str, ...] = ()
    ports: list[int] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None

    @property
    def peer(self) -> Peer:
        return Peer(self.name, self.ports[0], self.ports[1])

    @property
    def log(self) -> Path:
        return self.work / f"{self.name}.log"

    def start(self) -> None:
        """Starts it over a fresh copy of the models, on new ports; `wait` says when it serves them."""
        models = self.work / self.name
        shutil.rmtree(models, ignore_errors=True)
        shutil.copytree(self.repository, models)
        self.ports = free_ports(3)
        common = [
            f"--model-repository={models}",
            "--model-control-mode=explicit",
            "--load-model=*",
            "--exit-on-error=false",
            "--http-address=127.0.0.1",
            "--grpc-address=127.0.0.1",
            f"--http-port={self.ports[0]}",
            f"--grpc-port={self.ports[1]}",
            f"--metrics-port={self.ports[2]}",
            "--allow-gpu-metrics=false",
            *self.flags,
        ]
        command, environment = real_server(self.triton) if self.name == "triton" else our_server()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *common], env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self) -> None:
        """Returns when it is live and no model is on its way."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if not self.is_alive(0.0):
                break
            with contextlib.suppress(urllib.error.URLError, OSError):
                states = {entry.get("state") for entry in self.index()}
                if "READY" in states and not states & {"LOADING", "UNLOADING"}:
                    return
            time.sleep(0.2)
        raise TimeoutError(f"{self.name} does not serve after {START_S:.0f} s:\n{self.log.read_text()[-2000:]}")

    def index(self) -> list[dict[str, str]]:
        """Returns what the server says of its models."""
        url = f"http://127.0.0.1:{self.ports[0]}/v2/repository/index"
        with urllib.request.urlopen(urllib.request.Request(url, b""), timeout=30) as response:
            found: list[dict[str, str]] = json.load(response)
        return found

    def is_alive(self, patience_s: float) -> bool:
        """Says whether the process lives; waits a while for one that is about to end."""
        assert self.process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(patience_s)
        return self.process.poll() is None

    def end(self) -> None:
        """Asks the server to end, then ends it with all that it started."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(15)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(15)
        self.process = None

    def restart(self) -> None:
        """Ends and starts it, and waits until it serves; a Triton whose stubs collide at the start gets more tries."""
        for left in reversed(range(STARTS)):
            self.end()
            self.start()
            try:
                self.wait()
            except TimeoutError:
                if not left or self.is_alive(0.0):
                    raise
            else:
                return


@contextlib.contextmanager
def started(server: Server) -> Iterator[Server]:
    """Runs one server for the time of a block."""
    try:
        server.start()
        server.wait()
        yield server
    finally:
        server.end()


@contextlib.contextmanager
def started_pair(
    triton: Path, repository: Path, work: Path, flags: tuple[str, ...] = ()
) -> Iterator[tuple[Peer, Peer]]:
    """Starts both servers, with all models loaded."""
    pair = [Server(name, triton, repository, work, flags) for name in NAMES]
    try:
        for server in pair:
            server.start()
        for server in pair:
            server.wait()
        yield pair[0].peer, pair[1].peer
    finally:
        for server in pair:
            server.end()


def real_server(triton: Path) -> tuple[list[str], dict[str, str]]:
    """Returns the real server's command and environment; makes its Python back end complete first."""
    packages = next(iter((triton / "lib").glob("python3.*"))) / "site-packages"
    home = packages / "pytriton" / "tritonserver"
    stub = home / "backends" / "python" / "triton_python_backend_stub"
    if not stub.exists():
        version = packages.parent.name.removeprefix("python")
        shutil.copy(home / "python_backend_stubs" / version / stub.name, stub)
    for program in (stub, home / "bin" / "tritonserver"):
        program.chmod(0o755)
    flags = [f"--backend-directory={home / 'backends'}", f"--cache-directory={home / 'caches'}"]
    environment = {
        **os.environ,
        "PATH": f"{triton / 'bin'}:{os.environ['PATH']}",
        "VIRTUAL_ENV": str(triton),
        "PYTHONPATH": str(packages),
    }
    return [str(home / "bin" / "tritonserver"), *flags], environment


def our_server() -> tuple[list[str], dict[str, str]]:
    """Returns the command of `tritonserver` as this interpreter has it."""
    return [sys.executable, "-c", "from millpond.cli.tritonserver import main; main()"], dict(os.environ)


def free_ports(count: int) -> list[int]:
    """Returns ports that nothing listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [item.getsockname()[1] for item in sockets]
