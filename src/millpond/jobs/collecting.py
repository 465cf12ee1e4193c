"""When Python looks for cycles among all objects of a controller: between two of its turns, never inside a decision.

A controller of a large cluster keeps a million objects, which it hardly ever ties into cycles; to look through them
takes 200 ms, whenever the interpreter likes. Here it is told when. Entered by the processes that run a controller.
"""

from __future__ import annotations

import gc
from types import TracebackType

_NEVER = 1 << 30
_MANY = 20  # times seven thousand objects, about, that have come and stayed
_ALL_EVERY_S = 600.0


class Collecting:
    """Takes full collections out of the interpreter's hands while it is entered."""

    def __init__(self) -> None:
        self._thresholds = gc.get_threshold()
        self._all_s: float | None = None

    def __enter__(self) -> Collecting:
        self._thresholds = gc.get_threshold()
        gc.set_threshold(*self._thresholds[:2], _NEVER)
        gc.collect()
        gc.freeze()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        gc.unfreeze()
        gc.set_threshold(*self._thresholds)

    def rest(self, now_s: float, *, is_idle: bool) -> None:
        """A turn is over: looks through what is new if that is much, and now and then, when idle, through everything.

        Args:
            now_s: The time, on any clock.
            is_idle: Whether nobody waits for the next turn.
        """
        if self._all_s is None:
            self._all_s = now_s + _ALL_EVERY_S
        is_all = is_idle and now_s >= self._all_s
        if is_all:
            self._all_s = now_s + _ALL_EVERY_S
            gc.unfreeze()
        if is_all or gc.get_count()[2] >= _MANY:
            gc.collect()
            gc.freeze()
