"""The form of Mistral, and of answers that a grammar holds to it: `[{"name": ..., "arguments": {...}}, ...]`.

Mistral writes `[TOOL_CALLS]` before it, a special token that is usually left out of the text.
"""

from __future__ import annotations

from millpond.serve.http.openai.tool_forms.base import CallBuilder, Piece

TAG = "[TOOL_CALLS]"
_SPACE = " \t\r\n"


class ArrayReader:
    """Reads a JSON array of calls; anything that does not begin like one is text."""

    def __init__(self, names: frozenset[str]) -> None:
        self._head = ""  # what was read before the first call, shown if that is none after all
        self._buffer = ""
        self._in_call = False
        self._is_text = False
        self._calls = CallBuilder(names)

    def push(self, text: str) -> list[Piece]:
        """Takes the next text; returns what is certain by now."""
        self._buffer += text
        pieces: list[Piece] = []
        while True:
            before = (len(self._buffer), self._in_call, self._is_text)
            pieces += self._read()
            if (len(self._buffer), self._in_call, self._is_text) == before:
                return pieces

    def flush(self) -> list[Piece]:
        """Returns the rest at the end of the answer."""
        rest = self._buffer
        if self._in_call:
            rest = "" if self._calls.is_given else self._calls.raw
        if self._calls.num_calls:
            rest = rest.strip(_SPACE + ",]")
        rest = self._head + rest
        return [rest] if rest else []

    def _read(self) -> list[Piece]:
        if self._in_call:
            return self._read_call()
        if self._is_text:
            text, self._buffer = self._buffer, ""
            return [text] if text else []
        if self._calls.num_calls:
            return self._read_between()
        rest = self._buffer.lstrip(_SPACE)
        if rest.startswith(TAG):
            rest = rest[len(TAG) :].lstrip(_SPACE)
        is_open = rest.startswith("[")
        item = rest[1:].lstrip(_SPACE) if is_open else rest
        if is_open and item.startswith("{"):
            self._head, self._buffer = self._buffer[: len(self._buffer) - len(item)], item
            self._begin()
        elif not TAG.startswith(rest) and not (is_open and not item):
            self._is_text = True
        return []

    def _read_between(self) -> list[Piece]:
        rest = self._buffer.lstrip(_SPACE + ",]")
        if rest:
            self._buffer = rest
        if rest.startswith("{"):
            self._begin()
        elif rest:
            self._is_text = True
        return []

    def _begin(self) -> None:
        self._in_call = True
        self._calls.begin()

    def _read_call(self) -> list[Piece]:
        self._buffer, pieces = self._calls.feed(self._buffer)
        if self._calls.is_refused:
            self._in_call = False
            self._is_text = True
            return [self._take_head() + self._calls.raw]
        if self._calls.is_given:
            self._take_head()
        if self._calls.is_over:
            self._in_call = False
        return pieces

    def _take_head(self) -> str:
        head, self._head = self._head, ""
        return head
