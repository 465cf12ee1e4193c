"""The form of Llama 3: the answer is `{"name": ..., "parameters": {...}}`, or several with `;` between.

A JSON object that names no offered function is an ordinary answer.
"""

from __future__ import annotations

from millpond.serve.http.openai.tool_forms.base import CallBuilder, Piece

TAG = "<|python_tag|>"
SPACE = " \t\r\n"
BETWEEN = ";" + SPACE


class LlamaReader:
    """Reads calls that stand at the beginning of the answer, one after another."""

    def __init__(self, names: frozenset[str]) -> None:
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
            rest = rest.strip(BETWEEN)
        return [rest] if rest else []

    def _read(self) -> list[Piece]:
        if self._in_call:
            return self._read_call()
        if self._is_text:
            text, self._buffer = self._buffer, ""
            return [text] if text else []
        rest = self._buffer.lstrip(BETWEEN if self._calls.num_calls else SPACE)
        if rest.startswith(TAG):
            rest = rest[len(TAG) :].lstrip(SPACE)
        elif TAG.startswith(rest):
            return []  # nothing yet, or the beginning of the tag
        if rest.startswith("{"):
            self._buffer = rest
            self._in_call = True
            self._calls.begin()
        elif rest:
            self._is_text = True
            if self._calls.num_calls:
                self._buffer = rest
        return []

    def _read_call(self) -> list[Piece]:
        self._buffer, pieces = self._calls.feed(self._buffer)
        if self._calls.is_refused:
            self._in_call = False
            self._is_text = True
            return [self._calls.raw] if self._calls.raw else []
        if self._calls.is_over:
            self._in_call = False
        return pieces
