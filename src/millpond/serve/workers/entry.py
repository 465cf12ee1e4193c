"""The worker process's entry: `entry.main()` with `--fd`, `--to-worker` and `--from-worker`.

Started by `process.WorkerProcess` with one end of a socket pair and both arenas. Reads what it is to load, loads it,
says so, and executes batch after batch on the main thread. Ends with the gateway: when the socket closes, or at once
when the kernel sees the gateway die.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import importlib
import logging
import os
import signal
import socket
import sys
import traceback
from typing import NoReturn

from millpond.serve.servables.errors import ServableError
from millpond.serve.workers import wire
from millpond.serve.workers.arena import ArenaReader, ArenaWriter
from millpond.serve.workers.host import Host
from millpond.serve.workers.runners import RUNNERS, Runner
from millpond.serve.workers.tensor_wire import TensorPort

EXIT_LOAD_FAILED = 1
_PR_SET_PDEATHSIG = 1


def main() -> NoReturn:
    """Runs the worker process; the arguments are the process's own."""
    parser = argparse.ArgumentParser(prog="millpond.serve.workers.entry")
    parser.add_argument("--fd", type=int, required=True, help="the socket to the gateway")
    parser.add_argument("--to-worker", type=int, required=True, help="the arena of the gateway")
    parser.add_argument("--from-worker", type=int, required=True, help="the arena of the worker")
    parser.add_argument("--parent", type=int, required=True, help="the gateway's process id")
    arguments = parser.parse_args()
    _settle_in(arguments.parent)
    sock = socket.socket(fileno=arguments.fd)
    status = _serve(sock, arguments.to_worker, arguments.from_worker)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # threads of the model that still run must not keep the process


def _settle_in(parent: int) -> None:
    """Makes the process a good child: it dies with its parent and leaves signals to it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(0)
    # Ctrl-C and a service manager's stop reach every process of the group. The gateway drains, then closes the line.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    faulthandler.enable()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s: %(message)s")


def _serve(sock: socket.socket, to_worker: int, from_worker: int) -> int:
    host = Host(sock, "")
    try:
        hello = host.wait_for_hello()
        host.name = hello.name
        reader, writer = ArenaReader(to_worker, hello.arena_bytes), ArenaWriter(from_worker, hello.arena_bytes)
        host.attach(TensorPort(writer, reader, hello.inline_bytes, writable=True))
        try:
            runner: Runner = importlib.import_module(RUNNERS[hello.runner]).load(host, hello.arguments)
            host.send(wire.Ready(runner.info()))
        except ConnectionError:
            raise
        except (Exception, SystemExit) as error:
            host.send(wire.LoadFailed(_load_error(error)))
            return EXIT_LOAD_FAILED
        _execute_all(host, runner)
        runner.close()
    except ConnectionError:
        pass
    return 0


def _execute_all(host: Host, runner: Runner) -> None:
    while (execution := host.next_execution()) is not None:
        execution.begin()
        try:
            runner.execute(execution)
        except ServableError as error:
            execution.fail(wire.ErrorWire(error.code, error.message))
        except ConnectionError:
            raise
        except BaseException as error:  # whatever a model raises, SystemExit included, is the batch's error
            traceback.print_exc()
            execution.fail(wire.ErrorWire("internal", f"{type(error).__name__}: {error}"))


def _load_error(error: BaseException) -> wire.ErrorWire:
    if isinstance(error, ServableError):
        return wire.ErrorWire(error.code, error.message)
    traceback.print_exc()
    return wire.ErrorWire("internal", f"{type(error).__name__}: {error}")
