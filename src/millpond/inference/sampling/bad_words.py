"""Bad words: token sequences that a sequence must not say, as in transformers' `bad_words_ids`.

Owns the words and the few last tokens they have to be compared with. A word of one token is never chosen; the last
token of a longer one is not chosen where all before it have just been said, be it in the prompt. Called by `sequence`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]


class BadWords:
    """What one sequence must not say.

    Args:
        words: Token sequences, none of them empty, with ids inside the vocabulary.
        prompt_token_ids: What stands before the first generated token.
    """

    __slots__ = ("_continued", "_keep", "_recent", "_single")

    def __init__(self, words: Sequence[Sequence[int]], prompt_token_ids: Sequence[int]) -> None:
        self._single = np.array(sorted({word[0] for word in words if len(word) == 1}), dtype=np.int64)
        # By the last token of what comes before, so that a step looks at few words however many there are.
        self._continued: dict[int, list[tuple[list[int], int]]] = {}
        for word in words:
            if len(word) > 1:
                self._continued.setdefault(word[-2], []).append((list(word[:-1]), word[-1]))
        self._keep = max((len(word) - 1 for word in words), default=0)
        self._recent = list(prompt_token_ids[-self._keep :]) if self._keep else []

    def add(self, token_id: int) -> None:
        """Notes one generated token."""
        if self._keep:
            self._recent.append(token_id)
            del self._recent[: -self._keep]

    def apply(self, row: Float32Array) -> None:
        """Rules out tokens of a row of logits, in place."""
        row[self._single] = -np.inf
        if not self._recent:
            return
        for before, token_id in self._continued.get(self._recent[-1], ()):
            if self._recent[-len(before) :] == before:
                row[token_id] = -np.inf
