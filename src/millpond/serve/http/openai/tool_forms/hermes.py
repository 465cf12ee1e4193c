"""The form of Hermes and Qwen: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, any number, text between.

Also what models are told to write whose own template knows no tools.
"""

from __future__ import annotations

from millpond.serve.http.openai.tool_forms.base import CallBuilder, Piece, held_back

OPEN = "<tool_call>"
CLOSE = "</tool_call>"


class HermesReader:
    """Reads tagged calls. Space around calls is no content."""

    def __init__(self, names: frozenset[str]) -> None:
        self._buffer = ""
        self._space = ""  # seen, and content only if more content follows
        self._in_call = False
        self._calls = CallBuilder()

    def push(self, text: str) -> list[Piece]:
        """Takes the next text; returns what is certain by now."""
        self._buffer += text
        pieces: list[Piece] = []
        while True:
            before = (len(self._buffer), self._in_call)
            pieces += self._read_call() if self._in_call else self._read_text()
            if (len(self._buffer), self._in_call) == before:
                return pieces

    def flush(self) -> list[Piece]:
        """Returns the rest at the end of the answer."""
        rest = self._buffer
        if self._in_call:
            rest = "" if self._calls.is_given else OPEN + self._calls.raw
        rest = self._space + rest
        return [rest] if rest.strip() or (rest and not self._calls.num_calls) else []

    def _read_text(self) -> list[Piece]:
        text, tag, rest = self._buffer.partition(OPEN)
        if tag:
            self._buffer = rest
            self._in_call = True
            self._calls.begin()
            content = self._space + text.rstrip() if text.strip() else ""
            self._space = ""
            return [content] if content else []
        keep = held_back(text, OPEN)
        text, self._buffer = text[: len(text) - keep], text[len(text) - keep :]
        return self._content(text)

    def _content(self, text: str) -> list[Piece]:
        visible = text.rstrip()
        if not visible:
            self._space += text
            return []
        content = self._space + visible
        self._space = text[len(visible) :]
        return [content]

    def _read_call(self) -> list[Piece]:
        if not self._calls.is_over:
            self._buffer, pieces = self._calls.feed(self._buffer)
        else:
            pieces = []
        if self._calls.is_refused:
            self._in_call = False
            return self._content(OPEN + self._calls.raw)
        if self._calls.is_over:
            _, tag, rest = self._buffer.partition(CLOSE)
            if tag:
                self._buffer = rest
                self._in_call = False
            else:
                self._buffer = self._buffer[len(self._buffer) - held_back(self._buffer, CLOSE) :]
        return pieces
