"""What the readers of tool calls have in common: what they give out, and text that may turn out to be a tag."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from millpond.serve.http.openai.tool_forms.scanner import CallScanner


@dataclass(frozen=True, slots=True)
class CallPiece:
    """What is new about one call. `name` comes with its first piece only.

    Attributes:
        call: Number of the call within the answer.
    """

    call: int
    name: str | None
    arguments: str


Piece = str | CallPiece


class ToolReader(Protocol):
    """Splits an answer into text and tool calls while it is written."""

    def push(self, text: str) -> list[Piece]:
        """Takes the next text; returns what is certain by now."""
        ...

    def flush(self) -> list[Piece]:
        """Returns the rest at the end of the answer."""
        ...


class CallBuilder:
    """Numbers the calls of an answer and turns what was read of one into pieces.

    Args:
        names: The functions on offer; None lets every name pass.

    Attributes:
        num_calls: Calls given out so far.
        is_given: The current call is one of them, in part at least.
    """

    def __init__(self, names: frozenset[str] | None = None) -> None:
        self.num_calls = 0
        self._names = names
        self.is_given = False
        self._scanner = CallScanner()

    def begin(self) -> None:
        """Starts the next call."""
        self.is_given = False
        self._scanner = CallScanner()

    def feed(self, text: str) -> tuple[str, list[Piece]]:
        """Reads on; returns the text that is not the call's, and the call's news."""
        rest = text[self._scanner.feed(text) :]
        if not self._scanner.is_call or self._is_foreign:
            return rest, []
        arguments = self._scanner.take_arguments()
        if self.is_given:
            return rest, [CallPiece(self.num_calls - 1, None, arguments)] if arguments else []
        self.is_given = True
        self.num_calls += 1
        return rest, [CallPiece(self.num_calls - 1, self._scanner.name, arguments)]

    @property
    def is_over(self) -> bool:
        """True when the current call takes no more text."""
        return self._scanner.is_done or self._scanner.is_broken

    @property
    def is_refused(self) -> bool:
        """True when what was read is no call after all; nothing of it was given out then."""
        return not self.is_given and (self.is_over or self._is_foreign)

    @property
    def _is_foreign(self) -> bool:
        name = self._scanner.name
        return self._names is not None and name is not None and name not in self._names

    @property
    def raw(self) -> str:
        """The current call as it was written, for when it is shown after all."""
        return self._scanner.raw


def held_back(text: str, tag: str) -> int:
    """Returns how many characters at the end of `text` could be the beginning of `tag`."""
    for length in range(min(len(tag) - 1, len(text)), 0, -1):
        if text.endswith(tag[:length]):
            return length
    return 0
