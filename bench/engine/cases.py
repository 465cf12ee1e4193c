"""What an engine is measured at, and the contract with the commands that measure one.

A peer is a command. It gets a case in its arguments (`{prompt}`, `{output}`, `{streams}` in its template) and prints
JSON lines; a line that is no JSON object is ignored. A line with `tokens_per_second` is one repetition of the case:

    decode   one stream: (output - 1) / (last token - first token)
    prefill  one stream: prompt / (first token - start)
    streams  all at once: streams * output / (last token - start), the prompts' time included

Tokens are greedy, the end-of-sequence token is ignored, prompts are random tokens and none shares a beginning. A line
with `error` ends the run as a failure. A template with `{cases}` is started once a round instead and answers all of
them (NAME:PROMPT:OUTPUT:STREAMS, joined by commas), each line then names its `case`: for engines that start slowly.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to measure."""

    name: str
    prompt: int
    output: int
    streams: int

    @property
    def text(self) -> str:
        """As a peer reads it."""
        return f"{self.name}:{self.prompt}:{self.output}:{self.streams}"


CASES = (
    Case("decode", 128, 128, 1),
    Case("prefill 512", 512, 1, 1),
    Case("prefill 2048", 2048, 1, 1),
    Case("16 streams", 128, 128, 16),
    Case("64 streams", 128, 128, 64),
)


class PeerError(Exception):
    """A command failed, ran out of time or said nothing."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A side of the comparison: its name and the command that measures it."""

    name: str
    template: str

    @property
    def takes_all(self) -> bool:
        """Whether one start answers all cases."""
        return "{cases}" in self.template

    @classmethod
    def parse(cls, text: str) -> Peer:
        """Reads NAME=COMMAND."""
        name, equals, command = text.partition("=")
        if not (name and equals and command.strip()):
            raise ValueError(f"{text!r} is not NAME=COMMAND")
        return cls(name, command)

    def command(self, cases: Sequence[Case], values: Mapping[str, str]) -> list[str]:
        """The arguments for these cases (one, unless `takes_all`); each word of the template is filled by itself."""
        first = cases[0]
        own = {
            "case": first.name,
            "prompt": str(first.prompt),
            "output": str(first.output),
            "streams": str(first.streams),
            "cases": ",".join(case.text for case in cases),
        }
        words = shlex.split(self.template)
        for key, value in {**values, **own}.items():
            words = [word.replace("{" + key + "}", value) for word in words]
        return words


def read_lines(text: str, cases: Sequence[Case]) -> dict[str, list[float]]:
    """Rates by case from what a command printed.

    Raises:
        PeerError: It reported an error, a case that was not asked for, or no rate at all.
    """
    known = {case.name for case in cases}
    rates: dict[str, list[float]] = {}
    for line in text.splitlines():
        if not line.lstrip().startswith("{"):
            continue
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if "error" in row:
            raise PeerError(str(row["error"]))
        if "tokens_per_second" not in row:
            continue
        name = row.get("case", cases[0].name if len(cases) == 1 else None)
        if name not in known:
            raise PeerError(f"it measured the case {name!r}, which was not asked for")
        rates.setdefault(name, []).append(float(row["tokens_per_second"]))
    if not rates:
        raise PeerError("it printed no line with tokens_per_second")
    return rates


def run_command(command: Sequence[str], timeout_s: float) -> tuple[str, float]:
    """What a command printed, and the processor seconds it and its children took.

    Raises:
        PeerError: It cannot be started, exits with an error or takes longer than `timeout_s`; its whole group is ended.
    """
    before = os.times()
    try:
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
    except OSError as error:
        raise PeerError(f"{command[0]} cannot be started: {error.strerror}") from error
    try:
        out, err = child.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise PeerError(f"no end after {timeout_s:.0f} s") from None
    finally:
        end_group(child)
    if child.returncode:
        raise PeerError(f"it exited with {child.returncode}: {err.strip()[-500:]}")
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return out, used


def end_group(child: subprocess.Popen[str]) -> None:
    """Ends a command that was started in a session of its own, with all it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    for pipe in (child.stdout, child.stderr):
        if pipe is not None:
            pipe.close()
