"""Shows long work: a bar on a terminal, a plain line now and then otherwise.

Knows stages and fractions, not what the work is. Anything long takes a `Progress` callable; the command line hands in a
`StageProgress`. Writes to standard error so that standard output stays the answer's.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from millpond.base.units import format_seconds

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

Progress = Callable[[str, float], None]  # (what is being done, how much of it: 0 to 1)

_LINE_EVERY_S = 10.0
_DRAW_EVERY_S = 0.1


class StageProgress:
    """A `Progress` that shows what it is told. Use it as a context manager; calls after the end are ignored.

    Args:
        stream: Where to write; None: standard error.
        quiet: True shows nothing.
        clock: Seconds from any start.
    """

    def __init__(
        self, *, stream: TextIO | None = None, quiet: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._quiet = quiet
        self._clock = clock
        self._stage = ""
        self._started = 0.0
        self._drawn = 0.0
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> StageProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __call__(self, stage: str, fraction: float) -> None:
        """Says that `fraction` of `stage` is done; 1 ends the stage."""
        if self._quiet:
            return
        stage = stage[:1].upper() + stage[1:]
        is_new = stage != self._stage
        now = self._clock()
        if is_new:
            if fraction >= 1 and not self._stream.isatty():
                return  # a late word about a stage that is over
            self._stage, self._started = stage, now
        if is_new or fraction >= 1 or now - self._drawn >= self._interval:
            self._drawn = now
            self._draw(stage, min(1.0, max(0.0, fraction)), is_new, now - self._started)
        if fraction >= 1:
            self._stage = ""

    def close(self) -> None:
        """Takes the bar away and shows nothing more."""
        self._quiet = True
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    @property
    def _interval(self) -> float:
        return _DRAW_EVERY_S if self._stream.isatty() else _LINE_EVERY_S

    def _draw(self, stage: str, fraction: float, is_new: bool, elapsed: float) -> None:
        if self._stream.isatty():
            self._draw_bar(stage, fraction)
        elif is_new:
            self._write(f"{stage} ...")
        elif fraction < 1:
            self._write(f"{stage} ... {fraction:.0%}")
        elif elapsed >= 1:
            self._write(f"{stage}: done in {format_seconds(elapsed)}")

    def _write(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()

    def _draw_bar(self, stage: str, fraction: float) -> None:
        if self._bar is None:
            self._bar = _make_bar(self._stream)
            self._bar.start()
            self._task = self._bar.add_task(stage, total=1.0)
        assert self._task is not None
        self._bar.update(self._task, description=stage, completed=fraction, refresh=True)


def _make_bar(stream: TextIO) -> RichProgress:
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    return RichProgress(*columns, console=Console(file=stream), transient=True, auto_refresh=False)
