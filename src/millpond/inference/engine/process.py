"""The engine process's entry: `python -m millpond.inference.engine.process --fd N`.

Started by the supervisor with one end of a socket pair. Reads the config, loads the engine, says so, and hands over to
the loop. Ends with the gateway: when the socket closes, or at once when the kernel sees the gateway die. Owns the
process's signals and logging; imports what computes only when it loads, so that the import is timed like the rest.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import gc
import logging
import signal
import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from millpond.base.errors import MillpondError
from millpond.base.progress import Progress
from millpond.inference.engine import messages
from millpond.inference.engine.stages import StageClock

if TYPE_CHECKING:
    from millpond.inference.engine.loading import LoadedEngine

EXIT_LOAD_FAILED = 1
EXIT_STEPS_FAILED = 70
_SEND_TIMEOUT_S = 30.0
_RECV_BYTES = 1 << 18
_PR_SET_PDEATHSIG = 1

LoadEngine = Callable[[messages.Hello, Progress], "LoadedEngine"]


def main() -> NoReturn:
    """Runs the engine process; the arguments are the process's own."""
    parser = argparse.ArgumentParser(prog="millpond.inference.engine.process")
    parser.add_argument("--fd", type=int, required=True, help="the socket to the gateway")
    arguments = parser.parse_args()
    settle_in()
    with socket.socket(fileno=arguments.fd) as sock:
        status = serve(sock, _load)
    sys.exit(status)


def settle_in() -> None:
    """Makes the process a good child: it dies with its parent, leaves signals to it, and signs its log lines."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Ctrl-C and a service manager's stop reach every process of the group. The gateway drains, then closes the line.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    faulthandler.enable()
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="engine[%(process)d] %(levelname)s: %(message)s", force=True
    )


def serve(sock: socket.socket, load: LoadEngine) -> int:
    """Loads and serves over `sock`; returns the exit status."""
    log = logging.getLogger(__name__)
    sock.settimeout(None)
    frames = messages.FrameReader()
    try:
        hello = _read_hello(sock, frames)
        if hello is None:
            return 0
        sock.settimeout(_SEND_TIMEOUT_S)

        def report(stage: str, fraction: float) -> None:
            sock.sendall(messages.encode(messages.Progress(stage, fraction)))

        try:
            loaded = load(hello, report)
        except (Exception, SystemExit) as error:
            if not isinstance(error, MillpondError | MemoryError | ConnectionError):
                log.exception("The engine could not be loaded.")
            sock.sendall(messages.encode(messages.describe_failure(error)))
            return EXIT_LOAD_FAILED
        sock.sendall(messages.encode(messages.Ready(loaded.info)))
    except (ConnectionError, TimeoutError):
        log.warning("The gateway went away while the engine was loading.")
        return 0
    gc.collect()
    gc.freeze()  # what is loaded stays; collections need not walk it
    from millpond.inference.engine.loop import EngineLoop

    if EngineLoop(loaded.core, sock, frames).run():
        loaded.core.close()
        return 0
    log.critical("Step after step failed: the process ends to be started afresh.")
    return EXIT_STEPS_FAILED


def _load(hello: messages.Hello, progress: Progress) -> LoadedEngine:
    clock = StageClock(progress, "start process", started_s=hello.started_s)
    clock("import", 0.0)
    from millpond.inference.engine.loading import load_engine

    return load_engine(messages.config_of(hello), hello.model_path, clock)


def _read_hello(sock: socket.socket, frames: messages.FrameReader) -> messages.Hello | None:
    """Returns the first message, None when the gateway hung up before it."""
    decoder = messages.to_engine_decoder()
    while data := sock.recv(_RECV_BYTES):
        for frame in frames.feed(data):
            message = decoder.decode(frame)
            if not isinstance(message, messages.Hello):
                raise ConnectionError("the gateway did not begin with a config")
            return message
    return None


if __name__ == "__main__":
    main()
