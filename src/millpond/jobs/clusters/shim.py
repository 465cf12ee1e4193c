"""Stands between the controller and one process: starts it once, outlives the controller, writes down how it ended.

Run as a plain file by `python -I -S shim.py DIRECTORY` with nothing but the standard library, so that it starts in
milliseconds. In DIRECTORY: `run.json` says what to run; `lock` is held for as long as the run lives; `started` means
that it must never be started again; `running` and `exit` are the facts the controller reads.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import sys
import time
from contextlib import suppress
from typing import Any

_LOCK_TRIES = 100  # somebody who only looks whether we live holds the lock for microseconds
_NOT_FOUND, _NOT_EXECUTABLE = 127, 126


def main(directory: str) -> None:
    """Claims the run, leaves the controller, and watches the process to its end."""
    os.chdir(directory)
    if not _claim():
        return
    if os.fork():
        return  # the controller waits for this process only; the claim is taken
    os.setsid()
    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    with open("run.json", encoding="utf-8") as file:
        run = json.load(file)
    log = os.open(run["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(descriptor, target)
    child = os.fork()
    if child == 0:
        _become(run)
    _write("running", {"pid": child, "ticks": start_ticks(child), "at_s": time.time()})
    _wake(run["wake"])
    _, status = os.waitpid(child, 0)
    with suppress(OSError):
        os.killpg(child, signal.SIGKILL)  # what the process left behind goes with it
    code = os.waitstatus_to_exitcode(status)
    _write("exit", {"exit_code": 128 - code if code < 0 else code, "at_s": time.time()})
    _wake(run["wake"])


def start_ticks(pid: int) -> int:
    """When a process started, in ticks since boot: with the pid it names a process for ever."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return int(file.read().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


def _claim() -> bool:
    lock = os.open("lock", os.O_RDWR | os.O_CREAT, 0o600)  # stays open, across the fork
    for _ in range(_LOCK_TRIES):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError:
            time.sleep(0.01)
    else:
        return False
    try:
        os.close(os.open("started", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return False
    return True


def _become(run: dict[str, Any]) -> None:
    os.setsid()  # a group of its own: stopping it stops its children
    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(name, signal.SIG_DFL)
    try:
        os.chdir(run["working_dir"])
        os.execvpe(run["command"][0], run["command"], run["env"])
    except OSError as error:
        os.write(2, f"millpond: cannot run {run['command'][0]}: {error.strerror}: {error.filename}\n".encode())
        os._exit(_NOT_FOUND if error.errno == errno.ENOENT else _NOT_EXECUTABLE)


def _write(name: str, value: dict[str, Any]) -> None:
    with open(f"{name}.new", "w", encoding="utf-8") as file:
        json.dump(value, file)
    os.rename(f"{name}.new", name)


def _wake(fifo: str) -> None:
    try:
        descriptor = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return  # no controller runs; the next one will find the file
    with suppress(OSError):
        os.write(descriptor, b"x")
    os.close(descriptor)


if __name__ == "__main__":
    main(sys.argv[1])
    os._exit(0)
