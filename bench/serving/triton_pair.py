"""A real Triton server and Millpond's, side by side over copies of one model repository.

Starts both and ends both; knows no requests. `triton_differential` and `tensor_models` use it. The real server is the
one that the package nvidia-pytriton 0.7.0 carries, in a virtual environment of its own.
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
from dataclasses import dataclass
from pathlib import Path

START_S = 600.0


@dataclass(frozen=True, slots=True)
class Peer:
    """One of the two servers."""

    name: str
    http: int
    grpc: int
    pid: int


@contextlib.contextmanager
def started_pair(
    triton: Path, repository: Path, work: Path, flags: tuple[str, ...] = ()
) -> Iterator[tuple[Peer, Peer]]:
    """Starts the real server of the virtual environment `triton`, and ours, with all models loaded."""
    with contextlib.ExitStack() as stack:
        peers = []
        for name in ("triton", "millpond"):
            models = work / name
            shutil.copytree(repository, models)
            ports = free_ports(3)
            common = [
                f"--model-repository={models}",
                "--model-control-mode=explicit",
                "--load-model=*",
                "--exit-on-error=false",
                "--http-address=127.0.0.1",
                "--grpc-address=127.0.0.1",
                f"--http-port={ports[0]}",
                f"--grpc-port={ports[1]}",
                f"--metrics-port={ports[2]}",
                "--allow-gpu-metrics=false",
                *flags,
            ]
            command, environment = real_server(triton) if name == "triton" else our_server()
            log = stack.enter_context((work / f"{name}.log").open("wb"))
            process = subprocess.Popen(
                [*command, *common], env=environment, stdout=log, stderr=log, start_new_session=True
            )
            stack.callback(ended, process)
            peers.append(Peer(name, ports[0], ports[1], process.pid))
        for peer in peers:
            wait_live(peer, work / f"{peer.name}.log")
        wait_loaded(peers)
        yield peers[0], peers[1]


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


def wait_live(peer: Peer, log: Path) -> None:
    """Returns when the server has started."""
    deadline = time.monotonic() + START_S
    url = f"http://127.0.0.1:{peer.http}/v2/health/live"
    while time.monotonic() < deadline:
        with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(url, timeout=2):
            return
        time.sleep(0.2)
    raise TimeoutError(f"{peer.name} did not start in {START_S:.0f} s:\n{log.read_text()[-2000:]}")


def wait_loaded(peers: list[Peer]) -> None:
    """Returns when both serve the same models; ours answers while it loads."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        found = []
        for peer in peers:
            url = f"http://127.0.0.1:{peer.http}/v2/repository/index"
            with urllib.request.urlopen(urllib.request.Request(url, b""), timeout=30) as response:
                entries = json.load(response)
            found.append({(e["name"], e.get("version")) for e in entries if e.get("state") == "READY"})
        if found[0] == found[1]:
            return
        time.sleep(0.5)
    raise TimeoutError(f"the servers do not serve the same models: {found[0] ^ found[1]}")


def ended(process: subprocess.Popen[bytes]) -> None:
    """Asks a server to end, then ends it with all that it started."""
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(15)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(15)
