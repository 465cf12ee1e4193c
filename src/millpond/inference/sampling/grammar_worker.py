"""The process behind `grammar_guard`: compiles one grammar after the other and says whether it could.

Owns its own limits: the kernel kills the process when a grammar uses up its processor time or memory, which nothing
inside a compiler in native code could do. Reads a `WorkerSetup` and then one `GrammarSpec` a line; answers each line
with a `Verdict`. Ends when its input ends, so it never outlives the gateway.
"""

from __future__ import annotations

import resource
import signal
import sys
from collections.abc import Sequence
from typing import BinaryIO

import msgspec
import tokenizers

from millpond.api.request import GrammarSpec
from millpond.base.errors import RequestError
from millpond.inference.sampling.grammar import GrammarBackend
from millpond.inference.sampling.grammar_guard import Verdict, WorkerSetup

_REAL_PER_CPU_SECOND = 30.0  # a busy machine stretches time; a worker that hangs without computing still ends


class _Tokenizer:
    """The tokenizer of a `WorkerSetup`."""

    def __init__(self, setup: WorkerSetup) -> None:
        self.raw = tokenizers.Tokenizer.from_str(setup.tokenizer)
        self.eos_token_ids = setup.eos_token_ids

    def vocabulary_bytes(self) -> Sequence[bytes]:
        """Near enough where the grammar library cannot read the tokenizer: a grammar compiles with any vocabulary."""
        size = self.raw.get_vocab_size(with_added_tokens=True)
        return [bytes([token % 256]) for token in range(size)]


def serve(lines: BinaryIO, answers: BinaryIO) -> None:
    """Answers grammars until the lines end."""
    setup = msgspec.json.decode(lines.readline(), type=WorkerSetup)
    hard_limit = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (setup.memory_bytes, hard_limit))
    backend = GrammarBackend(_Tokenizer(setup), vocab_size=setup.vocab_size, limits=setup.limits)
    backend.load()
    _answer(answers, Verdict())
    for line in lines:
        spec = msgspec.json.decode(line, type=GrammarSpec)
        # NOTE: with no handler set, these signals end the process wherever it is.
        signal.setitimer(signal.ITIMER_PROF, setup.cpu_seconds)
        signal.setitimer(signal.ITIMER_REAL, setup.cpu_seconds * _REAL_PER_CPU_SECOND)
        verdict = _judge(backend, spec)
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        _answer(answers, verdict)


def _judge(backend: GrammarBackend, spec: GrammarSpec) -> Verdict:
    try:
        backend.check(spec)
    except RequestError as error:
        return Verdict(error.message, error.fix)
    return Verdict()


def _answer(answers: BinaryIO, verdict: Verdict) -> None:
    answers.write(msgspec.json.encode(verdict) + b"\n")
    answers.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the gateway, which closes our input
    serve(sys.stdin.buffer, sys.stdout.buffer)
