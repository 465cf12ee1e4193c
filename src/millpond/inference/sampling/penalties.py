"""Penalties: what a sequence has already said makes tokens less likely.

Owns the counts of one sequence's tokens and their effect on a row of logits. Repetition follows Hugging Face (prompt
and output, divide or multiply), presence and frequency follow OpenAI (output alone, subtract). Called by `sequence`.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]


class Penalties:
    """The distinct tokens of one sequence, their counts, and the three penalties.

    Args:
        repetition: Divides positive and multiplies negative logits of tokens in the prompt or the output.
        presence: Subtracted once from tokens of the output.
        frequency: Subtracted from tokens of the output as often as they occur there.
        vocab_size: Ids at or above it are ignored.
    """

    __slots__ = ("_counts", "_frequency", "_ids", "_place", "_presence", "_repetition", "_vocab_size")

    def __init__(self, *, repetition: float, presence: float, frequency: float, vocab_size: int) -> None:
        self._repetition = np.float32(repetition)
        self._presence = np.float32(presence)
        self._frequency = np.float32(frequency)
        self._vocab_size = vocab_size
        self._place: dict[int, int] = {}  # token id -> index into _ids and _counts
        self._ids = np.zeros(64, dtype=np.int64)
        self._counts = np.zeros(64, dtype=np.float32)

    def add_prompt(self, token_ids: Iterable[int]) -> None:
        """Notes the prompt's tokens. Only repetition looks at them."""
        if self._repetition != 1.0:
            for token_id in dict.fromkeys(token_ids):
                self._find_place(token_id)

    def add_output(self, token_id: int) -> None:
        """Notes one generated token."""
        place = self._find_place(token_id)
        if place >= 0:
            self._counts[place] += 1.0

    def apply(self, row: Float32Array) -> None:
        """Changes a row of logits in place."""
        known = len(self._place)
        if known == 0:
            return
        ids, counts = self._ids[:known], self._counts[:known]
        values = row[ids]
        if self._repetition != 1.0:
            values = np.where(values > 0, values / self._repetition, values * self._repetition)
        values -= self._frequency * counts + self._presence * (counts > 0)
        row[ids] = values

    def _find_place(self, token_id: int) -> int:
        place = self._place.get(token_id)
        if place is not None:
            return place
        if not 0 <= token_id < self._vocab_size:
            return -1
        place = len(self._place)
        if place == self._ids.size:
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._place[token_id] = place
        self._ids[place] = token_id
        return place
