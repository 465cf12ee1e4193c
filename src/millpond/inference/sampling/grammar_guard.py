"""Checks grammars in a process of their own, so that one that never finishes compiling stops nobody.

Owns that process: starts it at the first grammar, asks it one grammar at a time, starts a new one when it was killed by
its own limits (`grammar_worker`). The gateway calls `check` in a thread before a request is admitted; what passes here
compiles in the engine in about the same time. Knows nothing of requests. Imports neither torch nor the grammar library.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType

import msgspec

from millpond.api.request import GrammarSpec
from millpond.base.errors import MillpondError, RequestError
from millpond.inference.sampling.grammar import GrammarTokenizer
from millpond.inference.sampling.grammar_bounds import PARAM, GrammarLimits, check_bounds

WORKER_MODULE = "millpond.inference.sampling.grammar_worker"
_REMEMBERED = 1024  # grammars known to be good
_KILLED_BY = {
    int(signal.SIGPROF): "takes too long to compile",
    int(signal.SIGALRM): "takes too long to compile",
    int(signal.SIGABRT): "takes too much memory to compile",
}


@dataclass(frozen=True, slots=True)
class WorkerSetup:
    """The first line a worker reads.

    Attributes:
        tokenizer: tokenizer.json, as text.
        vocab_size: Width of the model's logits, if known.
        eos_token_ids: Tokens that end a sequence.
        limits: Bounds on grammars.
        cpu_seconds: Most time a grammar may compute.
        memory_bytes: Most address space the worker may use.
    """

    tokenizer: str
    vocab_size: int | None
    eos_token_ids: list[int]
    limits: GrammarLimits
    cpu_seconds: float
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """A worker's answer: empty when the grammar is good."""

    message: str = ""
    fix: str = ""


class GrammarGuard:
    """Checks grammars against bounds and, in a worker process, by compiling them.

    Args:
        tokenizer: The model's tokenizer.
        vocab_size: Width of the model's logits when it is more than the tokenizer has tokens.
        eos_token_ids: Tokens that end a sequence; None takes the tokenizer's.
        limits: Bounds on what a request may send.
        cpu_seconds: Most time a grammar may compute.
        memory_bytes: Most address space the worker may use.
    """

    def __init__(
        self,
        tokenizer: GrammarTokenizer,
        *,
        vocab_size: int | None = None,
        eos_token_ids: Iterable[int] | None = None,
        limits: GrammarLimits | None = None,
        cpu_seconds: float = 1.0,
        memory_bytes: int = 4 << 30,
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = sorted(set(tokenizer.eos_token_ids if eos_token_ids is None else eos_token_ids))
        self._limits = limits or GrammarLimits()
        self._cpu_seconds = cpu_seconds
        self._memory_bytes = memory_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._ending: weakref.finalize[[subprocess.Popen[bytes]], GrammarGuard] | None = None
        self._known_good: OrderedDict[GrammarSpec, None] = OrderedDict()
        self._lock = threading.Lock()

    def check(self, spec: GrammarSpec) -> None:
        """Raises `RequestError` unless the grammar is within bounds and compiles. Blocks; call it in a thread.

        Takes milliseconds for a sane grammar, about a second at most for a hostile one, and once the time the worker
        needs to start.
        """
        check_bounds(spec, self._limits)
        with self._lock:
            if spec in self._known_good:
                self._known_good.move_to_end(spec)
                return
            verdict = self._ask(spec)
            if verdict.message:
                raise RequestError(verdict.message, fix=verdict.fix, param=PARAM)
            self._known_good[spec] = None
            if len(self._known_good) > _REMEMBERED:
                self._known_good.popitem(last=False)

    def start(self) -> None:
        """Starts the worker ahead of the first grammar."""
        with self._lock:
            self._start()

    def close(self) -> None:
        """Ends the worker. A later `check` starts another."""
        with self._lock:
            self._stop()

    def __enter__(self) -> GrammarGuard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, spec: GrammarSpec) -> Verdict:
        process = self._start()
        answer = _exchange(process, msgspec.json.encode(spec))
        if answer:
            return msgspec.json.decode(answer, type=Verdict)
        self._stop()
        reason = _KILLED_BY.get(-process.returncode, "brings its compiler down")
        return Verdict(f"The {spec.kind} grammar {reason}.", "Send a simpler grammar.")

    def _start(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._stop()
        process = subprocess.Popen(
            [sys.executable, "-m", WORKER_MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._process = process
        # A guard that is dropped without `close`, or at exit, leaves no worker behind.
        self._ending = weakref.finalize(self, _end, process)
        setup = WorkerSetup(
            self._tokenizer.raw.to_str(),
            self._vocab_size,
            self._eos_token_ids,
            self._limits,
            self._cpu_seconds,
            self._memory_bytes,
        )
        if not _exchange(process, msgspec.json.encode(setup)):
            self._stop()
            raise MillpondError(f"The grammar checker did not start (exit code {process.returncode}).")
        return process

    def _stop(self) -> None:
        self._process = None
        if self._ending is not None:
            self._ending()


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.close()
    try:
        process.stdin.close()
        process.wait(timeout=2.0)
    except (BrokenPipeError, subprocess.TimeoutExpired):
        process.kill()
        process.wait()


def _exchange(process: subprocess.Popen[bytes], line: bytes) -> bytes:
    """One line to the worker and one back; empty when the worker is gone."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(line + b"\n")
        process.stdin.flush()
    except BrokenPipeError:
        return b""
    return process.stdout.readline()
