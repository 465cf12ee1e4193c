"""The sampler: one step's logits in, one token for each sequence out.

Owns the sampling state of every running sequence. Knows nothing of the scheduler, of blocks or of text. The engine core
adds a sequence when it is admitted, calls `sample` once a step and removes the sequence when it ends; preemption needs
no call, since a sequence's draws depend on its seed and on how many tokens it has, not on steps. Rows are worked on
one by one, so a sequence's token is the same alone and in any batch. The order is: penalties, bias, bad words,
grammar, min_tokens, temperature, min-p, top-k, top-p, draw. See docs/design/sampling.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from millpond.api.request import ErrorInfo, SamplingParams, TokenLogprob
from millpond.base.errors import MillpondError, RequestError
from millpond.inference.sampling.drafts import Draft, DraftOdds, draw_draft, draw_other, find_odds, is_kept
from millpond.inference.sampling.draw import Scratch, choose_token
from millpond.inference.sampling.grammar import GrammarBackend, Matcher
from millpond.inference.sampling.logprobs import SAFE_PEAK, token_logprob
from millpond.inference.sampling.philox import uniform_pairs
from millpond.inference.sampling.sequence import Counter, SequenceState, make_seed_words

Float32Array = npt.NDArray[np.float32]
Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class SampleRow:
    """Which row of the logits belongs to which sequence.

    Attributes:
        draft_token_ids: Guesses of the tokens at this place and those after it; the rows that follow are what the model
            says after each of them.
        draft_odds: What each guess was drawn from, where `Sampler.draft` said so.
    """

    seq_id: int
    logit_row: int
    draft_token_ids: Sequence[int] = ()
    draft_odds: Sequence[DraftOdds | None] = ()

    @property
    def next(self) -> SampleRow:
        """The row after the first guess."""
        return SampleRow(self.seq_id, self.logit_row + 1, self.draft_token_ids[1:], self.draft_odds[1:])

    @property
    def draft(self) -> Draft | None:
        """The first guess, if it was drawn from known odds."""
        odds = self.draft_odds[0] if self.draft_odds else None
        return None if odds is None else Draft(self.draft_token_ids[0], odds)


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


@dataclass(frozen=True, slots=True)
class _Job:
    """One row's work: nothing in it is shared with another row's."""

    row: Float32Array  # edited
    raw: Float32Array  # as the model gave it
    state: SequenceState
    uniforms: tuple[float, float]
    draft: Draft | None
    peak: int  # where `row` is largest; -1 when that is not known
    total: float | None  # the sum of the exponentials of `raw`, where somebody added up


@dataclass(frozen=True, slots=True)
class _Choice:
    token_id: int
    is_finite: bool
    logprob: TokenLogprob | None = None


class Sampler:
    """Chooses tokens for the sequences it was given.

    Args:
        vocab_size: Width of a row of logits.
        default_seed: For sequences whose request brings no seed.
        grammar_backend: Compiles grammars; None refuses them.
        rejects_drafts: Sequences without a seed may keep or replace a draft model's guesses by rejection. More guesses
            stay, but the tokens depend on which places were guessed, so the default seed does not fix them any more.
    """

    def __init__(
        self,
        vocab_size: int,
        default_seed: int,
        grammar_backend: GrammarBackend | None = None,
        *,
        rejects_drafts: bool = False,
    ) -> None:
        self._vocab_size = vocab_size
        self._default_seed = default_seed
        self._grammar_backend = grammar_backend
        self._states: dict[int, SequenceState] = {}
        self._rejects = rejects_drafts
        self._scratch = Scratch(vocab_size)
        self._draft_scratch: Scratch | None = None
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

    def sample(
        self,
        logits: Float32Array,
        rows: Sequence[SampleRow],
        peaks: Int32Array | None = None,
        sums: Float32Array | None = None,
    ) -> list[SampledToken]:
        """Chooses the next token of each row's sequence, and further ones as long as they are what was guessed.

        Each token is chosen as it would be without guesses: from its own row, with its own random number, with the
        penalties and the grammar as the tokens before it left them. So guesses change nothing but how many tokens come
        at once. Guesses with odds are kept or replaced by rejection: other tokens, of the same distribution.
        A row with a NaN or +inf, or with nothing left to choose, gives an `error` for its sequence alone.

        Args:
            logits: float32 [L, V]. The rows of sequences with penalties, biases, bad words, masks or grammars are
                overwritten.
            rows: Each sequence and each row at most once.
            peaks: int32 [L or more], the column of each row's largest value, or -1; None when nobody looked.
            sums: float32 [L, any], numbers whose sum is that of the row's exponentials, right if no value is above
                `SAFE_PEAK`; None when nobody added up.

        Returns:
            At least one token for each row; the tokens of a sequence in their order.
        """
        values: Float32Array = np.asarray(logits) if rows else np.zeros((0, 0), np.float32)
        sampled: list[SampledToken] = []
        while rows:
            tokens = self._sample_once(values, rows, peaks, sums)
            sampled += tokens
            rows = [
                row.next
                for row, token in zip(rows, tokens, strict=True)
                if row.draft_token_ids and self._is_confirmed(row, token)
            ]
        return sampled

    def wants_sums(self, rows: Sequence[SampleRow]) -> bool:
        """Whether the sums that `sample` takes would spare it work."""
        return any(self._states[row.seq_id].num_logprobs is not None for row in rows)

    def draft(self, logits: Float32Array, rows: Sequence[SampleRow], ahead: int) -> list[Draft | None]:
        """Guesses the token `ahead` places after each sequence's next one; None where the row has no numbers.

        Args:
            logits: float32 [L, V] of a draft model; not changed. V may differ from the model's own.
            rows: Each sequence and each row at most once.
            ahead: How many guesses the row follows.
        """
        values: Float32Array = np.asarray(logits)[:, : self._vocab_size]
        if self._draft_scratch is None:
            self._draft_scratch = Scratch(values.shape[1])
        states = [self._states[row.seq_id] for row in rows]
        rejects = [self._rejects and not state.is_seeded for state in states]
        counters = [state.counter(ahead, guesses=apart) for state, apart in zip(states, rejects, strict=True)]
        uniforms = _draw_uniforms(states, counters)
        with np.errstate(all="ignore"):
            return [
                _guess(values[row.logit_row], state, apart, uniform, self._draft_scratch)
                for row, state, apart, (uniform, _) in zip(rows, states, rejects, uniforms, strict=True)
            ]

    def prompt_logprobs(self, logits: Float32Array, target_ids: Sequence[int], k: int) -> list[TokenLogprob]:
        """Log-probability of target_ids[i] under row i of `logits`, beside the `k` likeliest tokens of the row.

        Call it before `sample`, which may overwrite rows.
        """
        with np.errstate(all="ignore"):
            return [
                token_logprob(row, token_id, k, self._scratch)
                for row, token_id in zip(np.asarray(logits), target_ids, strict=True)
            ]

    def _sample_once(
        self,
        values: Float32Array,
        rows: Sequence[SampleRow],
        peaks: Int32Array | None,
        sums: Float32Array | None,
    ) -> list[SampledToken]:
        states = [self._states[row.seq_id] for row in rows]
        totals = None if sums is None else np.add.reduce(sums, axis=1, dtype=np.float64).tolist()
        if peaks is not None and (tokens := _take_peaks(values, rows, states, peaks, totals)) is not None:
            return tokens
        edited = [(values[row.logit_row], state) for row, state in zip(rows, states, strict=True) if state.is_edited]
        with np.errstate(all="ignore"):
            originals = self._edit(edited)
            uniforms = _draw_uniforms(states, [state.counter() for state in states])
            jobs = [
                _Job(
                    logits := values[row.logit_row],
                    originals.get(id(state), logits),
                    state,
                    numbers,
                    row.draft,
                    -1 if peaks is None or state.is_edited else int(peaks[row.logit_row]),
                    None if totals is None else totals[row.logit_row],
                )
                for row, state, numbers in zip(rows, states, uniforms, strict=True)
            ]
            choices = [_choose(job, self._scratch) for job in jobs]
        return [_conclude(row.seq_id, state, choice) for row, state, choice in zip(rows, states, choices, strict=True)]

    def _is_confirmed(self, row: SampleRow, token: SampledToken) -> bool:
        """Whether the token is the first guess, and the rows after it may be looked at."""
        if token.error is not None or token.token_id != row.draft_token_ids[0]:
            return False
        return not self._states[row.seq_id].may_stop_at(token.token_id)

    def _make_matcher(self, params: SamplingParams) -> Matcher | None:
        if params.grammar is None:
            return None
        if self._grammar_backend is None:
            raise RequestError("This engine takes no grammars.", fix="Leave the grammar out.", param="grammar")
        return self._grammar_backend.make_matcher(params.grammar)

    def _edit(self, edited: Sequence[tuple[Float32Array, SequenceState]]) -> dict[int, Float32Array]:
        """Applies all that changes logits. Copies raw rows whose log-probabilities are wanted, by their state's id."""
        originals: dict[int, Float32Array] = {}
        for row, state in edited:
            if state.num_logprobs is not None:
                originals[id(state)] = row.copy()
            state.edit(row)
        constrained = [(row, state.matcher) for row, state in edited if state.matcher is not None]
        if constrained:
            self._mask_rows(constrained)
        for row, state in edited:
            state.hold_back_stops(row)
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


def _draw_uniforms(states: Sequence[SequenceState], counters: Sequence[Counter]) -> list[tuple[float, float]]:
    """Two random numbers for each sequence; zeros for the greedy ones, which need none."""
    numbers = [(0.0, 0.0)] * len(states)
    random = [i for i, state in enumerate(states) if state.truncation is not None]
    if random:
        keys = np.array([states[i].key for i in random], dtype=np.uint64)
        words = np.array([counters[i] for i in random], dtype=np.uint64)
        for i, first, second in zip(random, *uniform_pairs(keys, words.T).tolist(), strict=True):
            numbers[i] = (first, second)
    return numbers


def _choose(job: _Job, scratch: Scratch) -> _Choice:
    # NOTE: numpy's argmax is vectorised and stops at NaN; torch's is some 25 times slower on a row of float32.
    token_id = job.peak if job.peak >= 0 else int(job.row.argmax())
    peak = job.row[token_id]
    if not math.isfinite(peak):
        return _Choice(token_id, False)
    state = job.state
    if state.truncation is not None and job.draft is not None and job.draft.odds is not None:
        wanted = find_odds(job.row, peak, state.truncation, scratch)
        if is_kept(job.draft.token_id, job.draft.odds, wanted, job.uniforms[0]):
            token_id = job.draft.token_id
        else:
            token_id = draw_other(job.draft.odds, wanted, job.uniforms[1])
    elif state.truncation is not None:
        token_id = choose_token(job.row, peak, state.truncation, job.uniforms[0], scratch)
    if state.num_logprobs is None:
        return _Choice(token_id, True)
    known = peak if job.raw is job.row else None
    return _Choice(
        token_id, True, token_logprob(job.raw, token_id, state.num_logprobs, scratch, peak=known, total=job.total)
    )


def _guess(row: Float32Array, state: SequenceState, rejects: bool, uniform: float, scratch: Scratch) -> Draft | None:
    token_id = int(row.argmax())
    peak = row[token_id]
    if not math.isfinite(peak):
        return None
    if state.truncation is None:
        return Draft(token_id)
    if rejects:
        return draw_draft(row, peak, state.truncation, uniform, scratch)
    # With the number that the model's own token will be drawn with: where the distributions agree, so do the tokens.
    return Draft(choose_token(row, peak, state.truncation, uniform, scratch))


def _finite_peak(values: Float32Array, row: int, peaks: Int32Array) -> int:
    """Where a row is largest, when that is known and finite; else -1. A few scalars: numpy's calls cost more here."""
    token_id = int(peaks[row])
    return token_id if token_id >= 0 and math.isfinite(values[row, token_id]) else -1


def _take_peaks(
    values: Float32Array,
    rows: Sequence[SampleRow],
    states: Sequence[SequenceState],
    peaks: Int32Array,
    totals: list[float] | None,
) -> list[SampledToken] | None:
    """Greedy rows that nothing edits, by what the step found in passing; None where that will not do for all."""
    if not all(state.is_plain_greedy if totals is None else state.is_summed_greedy for state in states):
        return None
    token_ids = [_finite_peak(values, row.logit_row, peaks) for row in rows]
    if min(token_ids) < 0:
        return None
    if totals is None:
        chosen = zip(rows, states, token_ids, strict=True)
        return [_accept(row.seq_id, state, token_id) for row, state, token_id in chosen]
    tops = [float(values[row.logit_row, token_id]) for row, token_id in zip(rows, token_ids, strict=True)]
    if max(map(abs, tops)) >= SAFE_PEAK:
        return None
    return [
        _accept(row.seq_id, state, token_id, top - math.log(totals[row.logit_row]))
        for row, state, token_id, top in zip(rows, states, token_ids, tops, strict=True)
    ]


def _accept(seq_id: int, state: SequenceState, token_id: int, number: float = 0.0) -> SampledToken:
    """`number`: its log-probability, where one is wanted."""
    state.accept(token_id)
    if state.num_logprobs is None:
        return SampledToken(seq_id, token_id)
    return SampledToken(seq_id, token_id, TokenLogprob(token_id, min(number, 0.0), 1, []))


def _conclude(seq_id: int, state: SequenceState, choice: _Choice) -> SampledToken:
    """Notes the choice, or says why there is none."""
    if state.matcher is not None and (reason := state.matcher.error):
        error = ErrorInfo(RequestError.code, f"The grammar became too complex to follow: {reason}.")
    elif not choice.is_finite:
        error = ErrorInfo(MillpondError.code, "The model's output for this sequence is not finite (NaN or infinity).")
    else:
        state.accept(choice.token_id)
        return SampledToken(seq_id, choice.token_id, choice.logprob)
    return SampledToken(seq_id, state.error_token_id, None, error)
