"""Stop strings found while text arrives, whatever the cuts between its pieces.

The match that ends first wins; of those that end together, the longest. Text that may still become a stop string is
held back. Pure string work, one instance a sequence.
"""

from __future__ import annotations


class StopChecker:
    """Looks for stop strings in a sequence's text.

    Args:
        stop: The stop strings; none of them empty.
        include: Whether the matched string is part of the text that is emitted.
    """

    def __init__(self, stop: tuple[str, ...], include: bool) -> None:
        if not all(stop):
            raise ValueError("an empty stop string matches everywhere")
        # Longest first: of two that end at the same character the longer one is found first.
        self._patterns = [_Pattern(text) for text in sorted(set(stop), key=len, reverse=True)]
        self._include = include
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """Takes the next piece of text; returns what may be shown of it, and the stop string that matched, if one did.

        After a match the sequence is over: push nothing more.
        """
        text, num_old = self._held + text, len(self._held)
        for index in range(num_old, len(text)):
            letter = text[index]
            # Every pattern must see every letter, so no early exit before all have advanced.
            matched = [pattern for pattern in self._patterns if pattern.advance(letter)]
            if matched:
                self._held = ""
                end = index + 1 if self._include else index + 1 - len(matched[0].text)
                return text[:end], matched[0].text
        num_held = max((pattern.progress for pattern in self._patterns), default=0)
        cut = len(text) - num_held
        self._held = text[cut:]
        return text[:cut], None

    def flush(self) -> str:
        """Returns the text that was held back, when no more will come."""
        held, self._held = self._held, ""
        for pattern in self._patterns:
            pattern.progress = 0
        return held


class _Pattern:
    """Knuth-Morris-Pratt: how much of the text's end is the pattern's beginning."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.progress = 0
        self._borders = _borders(text)

    def advance(self, letter: str) -> bool:
        progress = self.progress
        while progress and self.text[progress] != letter:
            progress = self._borders[progress - 1]
        self.progress = progress + (self.text[progress] == letter)
        return self.progress == len(self.text)


def _borders(text: str) -> list[int]:
    """For each prefix the length of its longest proper border."""
    borders = [0] * len(text)
    length = 0
    for index in range(1, len(text)):
        while length and text[index] != text[length]:
            length = borders[length - 1]
        length += text[index] == text[length]
        borders[index] = length
    return borders
