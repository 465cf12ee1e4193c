"""How far loading is, on the terminal: one line that changes where someone watches, one line a stage in a log."""

from __future__ import annotations

from typing import TextIO

_CLEAR = "\r\x1b[K"


class LoadProgress:
    """Writes stages and fractions as they come. Call `end` before anything else is written to the same stream."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_live = stream.isatty()
        self._stage = ""
        self._percent = -1

    def report(self, stage: str, fraction: float) -> None:
        """Shows that `fraction` (0 to 1) of `stage` is done."""
        percent = int(100 * min(max(fraction, 0.0), 1.0))
        if self._is_live and (stage, percent) != (self._stage, self._percent):
            self._write(f"{_CLEAR}{stage} {percent}%")
        elif not self._is_live and stage != self._stage:
            self._write(f"{stage}\n")
        self._stage, self._percent = stage, percent

    def end(self) -> None:
        """Clears the line."""
        if self._is_live and self._stage:
            self._write(_CLEAR)

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
