"""Guesses of a sequence's next tokens from its own text: what followed the last time the same few tokens stood there.

Owns an index of one sequence's tokens that grows with it, and the account of how often its guesses were right. Guesses
are scored whether or not a step computes them, so that trying costs nothing but a look-up. Knows nothing of steps or
of their cost. Called by the engine's speculator, a token at a time.
"""

from __future__ import annotations

MATCH_TOKENS = 3  # as many equal tokens make a guess
LONGEST_MATCH = 16  # matches are told apart up to this length
INDEXED_PROMPT_TOKENS = 16384  # the rest of a longer prompt is not looked at
_HALVED_AT = 64.0  # tries of a class after which what is older counts half
_PRIOR_TRIES = 4.0  # what all sequences say about a class weighs as much as these tries of one's own
# Length of a match -> class of confidence; guesses after longer matches are right more often.
_CLASS = (0, 0, 0, 0, 1, 2, 2, 3, 3, 3, 4, 4, 4, 4, 4, 4, 5)
NUM_CLASSES = 6


class HitRates:
    """How often guesses came true, by class of confidence; what is old counts less."""

    __slots__ = ("_hits", "_tries")

    def __init__(self, prior: float = 0.0) -> None:
        self._tries = [_PRIOR_TRIES if prior else 0.0] * NUM_CLASSES
        self._hits = [prior * tries for tries in self._tries]

    def add(self, kind: int, is_hit: bool) -> None:
        """Notes how one guess ended."""
        self._tries[kind] += 1.0
        if is_hit:
            self._hits[kind] += 1.0
        if self._tries[kind] > _HALVED_AT:
            self._tries[kind] /= 2.0
            self._hits[kind] /= 2.0

    def rate(self, kind: int, everyone: HitRates | None = None) -> float:
        """The share of hits; with few tries of one's own, mostly that of `everyone`."""
        hits, tries = self._hits[kind], self._tries[kind]
        if everyone is not None:
            hits += _PRIOR_TRIES * everyone.rate(kind)
            tries += _PRIOR_TRIES
        return hits / tries if tries else 0.0


class NgramPredictor:
    """Guesses for one sequence.

    Args:
        token_ids: The sequence's known tokens; the sequence's own list, which grows.
        everyone: The account of all sequences, to which this one adds.
    """

    __slots__ = ("_everyone", "_follower", "_length", "_num_read", "_own", "_place", "_token_ids")

    def __init__(self, token_ids: list[int], everyone: HitRates) -> None:
        self._token_ids = token_ids
        self._everyone = everyone
        self._own = HitRates()
        first = max(0, len(token_ids) - INDEXED_PROMPT_TOKENS)
        recent = token_ids[first:] if first else token_ids
        # The last MATCH_TOKENS tokens -> where what followed them stands; the latest occurrence wins.
        self._follower = dict(
            zip(
                zip(recent[:-1], recent[1:-1], recent[2:-1], strict=False),
                range(first + MATCH_TOKENS, len(token_ids)),
                strict=False,
            )
        )
        self._place = -1  # where the guessed continuation stands; none below 0
        self._length = 0  # tokens that were equal before it
        # All but the last token are read: it is looked up like those that follow.
        self._num_read = len(token_ids) - 1
        self.advance()

    @property
    def confidence(self) -> float:
        """How likely the next guess is right; 0 without one."""
        return self._own.rate(_CLASS[self._length], self._everyone) if self._place >= 0 else 0.0

    def advance(self) -> None:
        """Reads the tokens that became known since the last call, and scores the guesses that were open."""
        token_ids, follower, end = self._token_ids, self._follower, self._num_read
        while end < len(token_ids):
            token_id = token_ids[end]
            end += 1
            before = -1
            if end >= MATCH_TOKENS:
                key = (token_ids[end - 3], token_ids[end - 2], token_id)
                before = follower.get(key, -1)
                follower[key] = end
            place = self._place
            if place >= 0:
                is_hit = token_ids[place] == token_id
                kind = _CLASS[self._length]
                self._own.add(kind, is_hit)
                self._everyone.add(kind, is_hit)
                if is_hit:
                    self._place = place + 1
                    if self._length < LONGEST_MATCH:
                        self._length += 1
                    continue
            self._take_up(before, end)
        self._num_read = end

    def propose(self, count: int) -> list[int]:
        """The next `count` tokens as guessed; none without a match.

        A match that runs into the end of the text goes on with the guesses themselves, as a repetition does.
        """
        place, end = self._place, self._num_read
        if place < 0 or count <= 0:
            return []
        guesses = self._token_ids[place : min(place + count, end)]
        period = len(guesses)
        while len(guesses) < count:
            guesses.append(guesses[-period])
        return guesses

    def _take_up(self, place: int, end: int) -> None:
        """Guesses from `place` on from now, where the tokens before it are those before `end`; -1 has no guesses."""
        self._place = place
        if place < 0:
            return
        token_ids, length = self._token_ids, MATCH_TOKENS
        while (
            length < LONGEST_MATCH and length < place and token_ids[place - 1 - length] == token_ids[end - 1 - length]
        ):
            length += 1
        self._length = length
