"""The sampler: one step's logits in, one token for each sequence out.

Owns the sampling state of every running sequence. Knows nothing of the scheduler, of blocks or of text. The engine core
adds a sequence when it is admitted, calls `sample` once a step and removes the sequence when it ends; preemption needs
no call, since a sequence's draws depend on its seed and on how many tokens it has, not on steps. Rows are worked on
one by one, so a sequence's token is the same alone and in any batch. The order is: penalties, bias, grammar,
min_tokens, temperature, min-p, top-k, top-p, draw. See docs/design/sampling.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from millpond.api.request import ErrorInfo, SamplingParams, TokenLogprob
from millpond.base.errors import MillpondError, RequestError
from millpond.inference.sampling.draw import Scratch, choose_token
from millpond.inference.sampling.grammar import GrammarBackend, Matcher
from millpond.inference.sampling.logprobs import token_logprob
from millpond.inference.sampling.philox import uniforms
from millpond.inference.sampling.sequence import SequenceState, make_seed_words

if TYPE_CHECKING:
    import torch

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SampleRow:
    """Which row of the logits belongs to which sequence."""

    seq_id: int
    logit_row: int


@dataclass(frozen=True, slots=True)
class SampledToken:
    """The token chosen for a sequence.

    With `error` set there is no choice: `token_id` is an end-of-sequence token (0 without one) that must not be shown,
    and the sequence has to end with that error. The sampler has not noted the token.
    """

    seq_id: int
    token_id: int
    logprob: TokenLogprob | None = None
    error: ErrorInfo | None = None


class Sampler:
    """Chooses tokens for the sequences it was given.

    Args:
        vocab_size: Width of a row of logits.
        default_seed: For sequences whose request brings no seed.
        grammar_backend: Compiles grammars; None refuses them.
    """

    def __init__(self, vocab_size: int, default_seed: int, grammar_backend: GrammarBackend | None = None) -> None:
        self._vocab_size = vocab_size
        self._default_seed = default_seed
        self._grammar_backend = grammar_backend
        self._states: dict[int, SequenceState] = {}
        self._scratch = Scratch(vocab_size)
        self._mask = np.zeros((0, 0), dtype=np.int32)

    def add(
        self,
        seq_id: int,
        params: SamplingParams,
        prompt_token_ids: Sequence[int],
        eos_token_ids: Iterable[int] = (),
        index: int = 0,
        *,
        output_token_ids: Sequence[int] = (),
    ) -> None:
        """Takes a sequence in. `params` have passed `check_sampling`.

        Args:
            seq_id: The engine's name for it; must be new.
            params: How to choose.
            prompt_token_ids: The prompt.
            eos_token_ids: Tokens that end it.
            index: Its place among the request's n choices.
            output_token_ids: What it has already generated, when it comes from elsewhere.

        Raises:
            RequestError: The grammar cannot be used.
        """
        assert seq_id not in self._states, f"sequence {seq_id} is already known"
        state = SequenceState(
            params,
            vocab_size=self._vocab_size,
            prompt_token_ids=prompt_token_ids,
            eos_token_ids=eos_token_ids,
            seed_words=make_seed_words(params.seed, index=index, seq_id=seq_id, default_seed=self._default_seed),
            matcher=self._make_matcher(params),
        )
        for token_id in output_token_ids:
            state.accept(token_id)
        self._states[seq_id] = state

    def remove(self, seq_id: int) -> None:
        """Forgets a sequence; one that is not known is fine."""
        self._states.pop(seq_id, None)

    def sample(self, logits: torch.Tensor, rows: Sequence[SampleRow]) -> list[SampledToken]:
        """Chooses the next token of each row's sequence.

        A row with a NaN or +inf, or with nothing left to choose, gives an `error` for its sequence alone.

        Args:
            logits: float32 [L, V]. The rows of sequences with penalties, biases, masks or grammars are overwritten.
            rows: Each sequence and each row at most once.
        """
        if not rows:
            return []
        values: Float32Array = logits.numpy()
        states = [self._states[row.seq_id] for row in rows]
        with np.errstate(all="ignore"):
            originals = self._edit(values, rows, states)
            tokens, peaks = _find_peaks(values, rows)
            self._draw(values, rows, states, (tokens, peaks))
            return [
                self._finish(row, state, (token, peak), originals.get(row.seq_id, values[row.logit_row]))
                if not state.is_plain or not math.isfinite(peak)
                else _finish_plain(row.seq_id, state, token)
                for row, state, token, peak in zip(rows, states, tokens, peaks, strict=True)
            ]

    def prompt_logprobs(self, logits: torch.Tensor, target_ids: Sequence[int], k: int) -> list[TokenLogprob]:
        """Log-probability of target_ids[i] under row i of `logits`, beside the `k` likeliest tokens of the row.

        Call it before `sample`, which may overwrite rows.
        """
        values: Float32Array = logits.numpy()
        with np.errstate(all="ignore"):
            return [
                token_logprob(row, token_id, k, self._scratch) for row, token_id in zip(values, target_ids, strict=True)
            ]

    def _make_matcher(self, params: SamplingParams) -> Matcher | None:
        if params.grammar is None:
            return None
        if self._grammar_backend is None:
            raise RequestError("This engine takes no grammars.", fix="Leave the grammar out.", param="grammar")
        return self._grammar_backend.make_matcher(params.grammar)

    def _edit(
        self, values: Float32Array, rows: Sequence[SampleRow], states: Sequence[SequenceState]
    ) -> dict[int, Float32Array]:
        """Applies everything that changes logits; returns copies of the raw rows whose log-probabilities are wanted."""
        originals: dict[int, Float32Array] = {}
        edited = [(row, state) for row, state in zip(rows, states, strict=True) if state.is_edited]
        for row, state in edited:
            if state.num_logprobs is not None:
                originals[row.seq_id] = values[row.logit_row].copy()
            state.edit(values[row.logit_row])
        constrained = [(values[row.logit_row], state.matcher) for row, state in edited if state.matcher is not None]
        if constrained:
            self._mask_rows(constrained)
        for row, state in edited:
            state.hold_back_stops(values[row.logit_row])
        return originals

    def _mask_rows(self, constrained: Sequence[tuple[Float32Array, Matcher]]) -> None:
        assert self._grammar_backend is not None
        if self._mask.shape[0] < len(constrained):
            self._mask = np.zeros((len(constrained), self._grammar_backend.mask_words), dtype=np.int32)
        self._grammar_backend.fill_masks([matcher for _, matcher in constrained], self._mask)
        for (row, _), words in zip(constrained, self._mask, strict=False):
            bits = np.unpackbits(~words.view(np.uint8), bitorder="little").view(np.bool_)
            known = min(row.size, bits.size)
            np.copyto(row[:known], -np.inf, where=bits[:known])
            row[known:] = -np.inf

    def _draw(
        self,
        values: Float32Array,
        rows: Sequence[SampleRow],
        states: Sequence[SequenceState],
        best: tuple[list[int], list[float]],
    ) -> None:
        """Replaces the likeliest token by a drawn one where the sequence is not greedy."""
        tokens, peaks = best
        random = [i for i, state in enumerate(states) if state.truncation is not None and math.isfinite(peaks[i])]
        if not random:
            return
        keys = np.array([states[i].key for i in random], dtype=np.uint64)
        counters = np.array([(states[i].position, *states[i].stream) for i in random], dtype=np.uint64)
        for i, uniform in zip(random, uniforms(keys, counters.T).tolist(), strict=True):
            row = values[rows[i].logit_row]
            kept = states[i].truncation
            assert kept is not None
            tokens[i] = choose_token(row, row[tokens[i]], kept, uniform, self._scratch)

    def _finish(
        self, row: SampleRow, state: SequenceState, choice: tuple[int, float], raw: Float32Array
    ) -> SampledToken:
        token_id, peak = choice
        failure = _find_failure(state, peak)
        if failure is not None:
            return SampledToken(row.seq_id, state.error_token_id, None, failure)
        logprob = None
        if state.num_logprobs is not None:
            logprob = token_logprob(raw, token_id, state.num_logprobs, self._scratch)
        state.accept(token_id)
        return SampledToken(row.seq_id, token_id, logprob)


def _finish_plain(seq_id: int, state: SequenceState, token_id: int) -> SampledToken:
    state.position += 1
    return SampledToken(seq_id, token_id)


def _find_peaks(values: Float32Array, rows: Sequence[SampleRow]) -> tuple[list[int], list[float]]:
    """The first largest entry of each row and its value, NaN if the row has one. numpy's argmax is vectorised; torch's
    is not (25 times slower on 49k float32)."""
    places = [row.logit_row for row in rows]
    if len(places) == len(values) and places == list(range(len(places))):
        best = values.argmax(axis=1)
    else:
        best = np.array([values[place].argmax() for place in places])
    return best.tolist(), values[places, best].tolist()


def _find_failure(state: SequenceState, peak: float) -> ErrorInfo | None:
    if state.matcher is not None and (error := state.matcher.error):
        return ErrorInfo(RequestError.code, f"The grammar became too complex to follow: {error}.")
    if math.isfinite(peak):
        return None
    return ErrorInfo(MillpondError.code, "The model's output for this sequence is not finite (NaN or infinity).")
