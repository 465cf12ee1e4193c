"""What the sampler remembers of one sequence between steps.

Owns the sequence's seed and position, its penalties, biases, the tokens it must not say (yet), and its matcher. Knows
nothing of the other sequences of a step. Made and called by `sampler` alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from millpond.api.request import SamplingParams
from millpond.inference.sampling.bad_words import BadWords
from millpond.inference.sampling.draw import GREEDY_TEMPERATURE, Truncation, make_truncation
from millpond.inference.sampling.grammar import Matcher
from millpond.inference.sampling.penalties import Penalties

Float32Array = npt.NDArray[np.float32]

_MASK64 = (1 << 64) - 1
_MASK32 = (1 << 32) - 1
# Last counter word: seeded and unseeded sequences never share a counter, whatever the seeds.
_SEEDED, _UNSEEDED = 0, 1
_GUESSING = 2  # guesses that must not depend on the numbers of the tokens they are guesses of

Counter = tuple[int, int, int, int]  # 32-bit words, least significant first


class SequenceState:
    """Parameters and history of one sequence, in the form a step needs them.

    Args:
        params: Checked sampling parameters.
        vocab_size: Width of a row of logits.
        prompt_token_ids: The prompt.
        eos_token_ids: Tokens that end it; with the request's own stop tokens, what `min_tokens` holds back.
        seed_words: What `make_seed_words` gave for the sequence.
        matcher: Its place in its grammar, if it has one.
    """

    __slots__ = (
        "_bad_words",
        "_bias_ids",
        "_bias_values",
        "_min_tokens",
        "_penalties",
        "_stop_ids",
        "_stop_set",
        "error_token_id",
        "is_edited",
        "is_plain_greedy",
        "is_summed_greedy",
        "key",
        "matcher",
        "num_logprobs",
        "position",
        "stream",
        "truncation",
    )

    def __init__(
        self,
        params: SamplingParams,
        *,
        vocab_size: int,
        prompt_token_ids: Sequence[int],
        eos_token_ids: Iterable[int],
        seed_words: tuple[int, tuple[int, int, int]],
        matcher: Matcher | None,
    ) -> None:
        self.key, self.stream = seed_words
        self.position = 0  # tokens generated so far
        self.matcher = matcher
        self.num_logprobs = params.logprobs
        self.truncation: Truncation | None = None  # None: greedy
        if params.temperature >= GREEDY_TEMPERATURE:
            self.truncation = make_truncation(
                params.temperature, params.top_k, params.top_p, params.min_p, params.typical_p
            )
        self._penalties = _make_penalties(params, vocab_size, prompt_token_ids)
        self._bad_words = BadWords(params.bad_words_ids, prompt_token_ids) if params.bad_words_ids else None
        bias = params.logit_bias or {}
        self._bias_ids = np.fromiter(bias.keys(), dtype=np.int64, count=len(bias))
        self._bias_values = np.fromiter(bias.values(), dtype=np.float32, count=len(bias))
        self._min_tokens = params.min_tokens
        eos_ids = {token for token in eos_token_ids if 0 <= token < vocab_size}
        self.error_token_id = min(eos_ids, default=0)  # stands in where no token can be chosen
        self._stop_set = eos_ids.union(params.stop_token_ids)
        self._stop_ids = np.array(sorted(self._stop_set), dtype=np.int64)
        self.is_edited = bool(self._penalties or self._bad_words or bias or self._min_tokens > 0 or matcher is not None)
        # The largest logit as the model gave it, and nothing else, is wanted.
        self.is_plain_greedy = not self.is_edited and self.truncation is None and self.num_logprobs is None
        # At most its log-probability is wanted beside it.
        self.is_summed_greedy = self.is_plain_greedy or (
            not self.is_edited and self.truncation is None and self.num_logprobs == 0
        )

    def edit(self, row: Float32Array) -> None:
        """Applies penalties, biases and bad words to the sequence's row of logits, in place."""
        if self._penalties is not None:
            self._penalties.apply(row)
        if self._bias_ids.size:
            row[self._bias_ids] += self._bias_values
        if self._bad_words is not None:
            self._bad_words.apply(row)

    def hold_back_stops(self, row: Float32Array) -> None:
        """Rules stop tokens out until `min_tokens` are there. A grammar that has nothing else to say may end early."""
        if self.position >= self._min_tokens or not self._stop_ids.size:
            return
        kept = row[self._stop_ids]
        row[self._stop_ids] = -np.inf
        if self.matcher is not None and row.max() == -np.inf:
            row[self._stop_ids] = kept

    @property
    def is_seeded(self) -> bool:
        """Whether the request brought a seed."""
        return self.stream[2] == _SEEDED

    def counter(self, ahead: int = 0, *, guesses: bool = False) -> Counter:
        """Which random numbers belong to the token `ahead` places after the next, or to a guess of it."""
        first, second, kind = self.stream
        return self.position + ahead, first, second, _GUESSING if guesses else kind

    def may_stop_at(self, token_id: int) -> bool:
        """Whether the token may have ended the sequence: it is a stop token, whether or not it counts as one."""
        return token_id in self._stop_set

    def accept(self, token_id: int) -> None:
        """Notes the token that was chosen."""
        self.position += 1
        if self._penalties is not None:
            self._penalties.add_output(token_id)
        if self._bad_words is not None:
            self._bad_words.add(token_id)
        if self.matcher is not None:
            self.matcher.accept(token_id)


def make_seed_words(
    seed: int | None, *, index: int, seq_id: int, default_seed: int
) -> tuple[int, tuple[int, int, int]]:
    """The 64-bit key of a sequence's random numbers and the upper three 32-bit words of their counters.

    With a seed they depend on the seed and the index among the request's choices alone; the lowest word counts tokens.
    """
    if seed is not None:
        return seed & _MASK64, (index & _MASK32, 0, _SEEDED)
    return default_seed & _MASK64, (seq_id & _MASK32, (seq_id >> 32) & _MASK32, _UNSEEDED)


def _make_penalties(params: SamplingParams, vocab_size: int, prompt_token_ids: Sequence[int]) -> Penalties | None:
    if params.repetition_penalty == 1.0 and params.presence_penalty == 0.0 and params.frequency_penalty == 0.0:
        return None
    penalties = Penalties(
        repetition=params.repetition_penalty,
        presence=params.presence_penalty,
        frequency=params.frequency_penalty,
        vocab_size=vocab_size,
    )
    penalties.add_prompt(prompt_token_ids)
    return penalties
