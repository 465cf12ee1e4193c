"""`TextTemplate`: frames of a stream that differ in one text only. Called by the writers of streams."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

_MARK = "\x01"


class TextTemplate:
    """Frames that differ in one text only: the rest of their JSON is made once, when the first of them is asked for.

    Args:
        make: Makes the frame of a text, which is not in what comes after it.
    """

    __slots__ = ("_after", "_before", "_make")

    def __init__(self, make: Callable[[str], bytes]) -> None:
        self._make = make
        self._before = self._after = b""

    def fill(self, text: str) -> bytes:
        """Returns the frame of a text."""
        if not self._before:
            self._before, _, self._after = self._make(_MARK).rpartition(msgspec.json.encode(_MARK))
        return self._before + msgspec.json.encode(text) + self._after
