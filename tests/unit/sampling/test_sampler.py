"""The sampler over steps and batches."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from millpond.api.request import GrammarSpec, SamplingParams
from millpond.base.errors import RequestError
from millpond.inference.sampling.sampler import SampledToken, Sampler, SampleRow
from tests.unit.sampling.reference import chi_square, shortlist, softmax

VOCAB = 500
EOS = 3


def make_logits(rows: int, seed: int = 0, vocab: int = VOCAB, scale: float = 2.0) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * scale


def make_sampler(*params: SamplingParams, prompt: Sequence[int] = (1, 2), default_seed: int = 99) -> Sampler:
    sampler = Sampler(VOCAB, default_seed)
    for seq_id, each in enumerate(params):
        sampler.add(seq_id, each, prompt, [EOS], 0)
    return sampler


def sample_alone(params: SamplingParams, logits: torch.Tensor, *, index: int = 0, seq_id: int = 0) -> list[int]:
    """One token for each row of logits, row after row."""
    sampler = Sampler(VOCAB, 99)
    sampler.add(seq_id, params, [1, 2], [EOS], index)
    return [sampler.sample(row[None].clone(), [SampleRow(seq_id, 0)])[0].token_id for row in logits]


@given(st.integers(0, 1000))
def test_greedy_rows_take_the_first_largest_logit(seed: int) -> None:
    logits = make_logits(8, seed).round()

    tokens = make_sampler(*[SamplingParams(temperature=0.0)] * 8).sample(logits, [SampleRow(i, i) for i in range(8)])

    assert [token.token_id for token in tokens] == [int((row == row.max()).nonzero()[0]) for row in logits]
    assert {token.logprob for token in tokens} == {None}


def test_rows_may_be_a_part_of_the_logits_in_any_order() -> None:
    logits = make_logits(6)
    sampler = make_sampler(*[SamplingParams(temperature=0.0)] * 3)

    tokens = sampler.sample(logits, [SampleRow(2, 5), SampleRow(0, 1), SampleRow(1, 3)])

    assert [(token.seq_id, token.token_id) for token in tokens] == [
        (2, int(logits[5].argmax())),
        (0, int(logits[1].argmax())),
        (1, int(logits[3].argmax())),
    ]


PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 1.7]),
    top_k=st.sampled_from([0, 1, 7, 400]),
    top_p=st.sampled_from([1.0, 0.9, 0.4]),
    min_p=st.sampled_from([0.0, 0.1]),
    repetition_penalty=st.sampled_from([1.0, 1.4]),
    presence_penalty=st.sampled_from([0.0, 0.7]),
    frequency_penalty=st.sampled_from([0.0, -0.2]),
    logit_bias=st.one_of(st.none(), st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-100, 100), max_size=5)),
    min_tokens=st.sampled_from([0, 3]),
    logprobs=st.sampled_from([None, 0, 4]),
    seed=st.integers(-(2**63), 2**63 - 1),
)


@settings(max_examples=60)
@given(PARAMS, st.lists(PARAMS, min_size=1, max_size=31), st.data())
def test_a_sequence_gets_the_same_bits_alone_and_in_a_batch(
    params: SamplingParams, others: list[SamplingParams], data: st.DataObject
) -> None:
    steps = 4
    place = data.draw(st.integers(0, len(others)))
    mine = make_logits(steps, seed=1)
    alone = make_sampler(params)
    expected = [alone.sample(mine[i][None].clone(), [SampleRow(0, 0)])[0] for i in range(steps)]
    batch = Sampler(VOCAB, 5)
    everyone = [*others[:place], params, *others[place:]]
    for seq_id, each in enumerate(everyone):
        batch.add(seq_id, each, [1, 2], [EOS], 0)

    for i in range(steps):
        logits = make_logits(len(everyone), seed=100 + i)
        logits[place] = mine[i]
        token = batch.sample(logits, [SampleRow(j, j) for j in range(len(everyone))])[place]
        assert token == SampledToken(place, expected[i].token_id, expected[i].logprob)


@pytest.mark.parametrize("size", [50_257, 49_152])
def test_rows_of_a_real_vocabulary_are_the_same_alone_and_among_others(size: int) -> None:
    params = [
        SamplingParams(seed=i, temperature=[0.0, 0.7, 3.0][i % 3], top_p=[1.0, 0.9][i % 2], logprobs=[None, 2][i // 12])
        for i in range(24)
    ]
    logits = make_logits(24, vocab=size)
    samplers = [Sampler(size, 0), Sampler(size, 0)]
    for sampler in samplers:
        for seq_id, each in enumerate(params):
            sampler.add(seq_id, each, [1, 2], [EOS], 0)
    alone = [samplers[0].sample(logits[i : i + 1], [SampleRow(i, 0)])[0] for i in range(24)]

    together = samplers[1].sample(logits, [SampleRow(i, i) for i in range(24)])

    assert together == alone


def test_a_seed_gives_the_same_tokens_whatever_the_sequence_is_called() -> None:
    logits, params = make_logits(50), SamplingParams(seed=11)

    assert sample_alone(params, logits, seq_id=4) == sample_alone(params, logits, seq_id=2**40)


def test_a_sequence_goes_on_as_before_when_it_is_taken_up_elsewhere() -> None:
    logits = make_logits(20)
    params = SamplingParams(seed=11, presence_penalty=1.5, repetition_penalty=1.2, min_tokens=12)
    tokens = sample_alone(params, logits)
    later = Sampler(VOCAB, 1234)

    later.add(8, params, [1, 2], [EOS], 0, output_token_ids=tokens[:10])

    rest = [later.sample(row[None].clone(), [SampleRow(8, 0)])[0].token_id for row in logits[10:]]
    assert rest == tokens[10:]


def test_choices_of_a_request_differ_though_they_share_a_seed() -> None:
    logits, params = make_logits(30), SamplingParams(seed=11, n=2)

    assert sample_alone(params, logits, index=0) != sample_alone(params, logits, index=1)


def test_sequences_without_a_seed_differ_and_follow_the_default_seed() -> None:
    logits = make_logits(1).repeat(64, 1)
    rows = [SampleRow(i, i) for i in range(64)]
    params = [SamplingParams()] * 64

    tokens = [t.token_id for t in make_sampler(*params, default_seed=1).sample(logits, rows)]

    assert len(set(tokens)) > 10
    assert tokens == [t.token_id for t in make_sampler(*params, default_seed=1).sample(logits, rows)]
    assert tokens != [t.token_id for t in make_sampler(*params, default_seed=2).sample(logits, rows)]


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(seed=1),
        SamplingParams(seed=2, temperature=0.6, top_p=0.9),
        SamplingParams(seed=3, temperature=1.5, top_k=30),
        SamplingParams(seed=4, temperature=1.2, min_p=0.05),
        SamplingParams(seed=5, temperature=1.2, top_k=50, top_p=0.8, min_p=0.01),
    ],
)
def test_draws_follow_the_distribution(params: SamplingParams) -> None:
    logits = make_logits(1, scale=1.5)
    row = logits[0].numpy()
    kept = shortlist(row, params.temperature, params.top_k, params.min_p)
    expected = np.zeros(VOCAB)
    expected[kept] = softmax(row, params.temperature)[kept]
    if params.top_p < 1:
        mass = expected[kept].cumsum() / expected.sum()
        expected[kept[int((mass < params.top_p).sum()) + 1 :]] = 0
    sampler = make_sampler(params)
    rows = [SampleRow(0, 0)]

    tokens = [sampler.sample(logits, rows)[0].token_id for _ in range(6_000)]

    assert chi_square(np.bincount(tokens, minlength=VOCAB), expected / expected.sum()) < 4


def test_logit_bias_moves_tokens_in_and_out() -> None:
    logits = make_logits(2)
    best = int(logits[0].argmax())
    sampler = make_sampler(
        SamplingParams(temperature=0.0, logit_bias={best: -100.0}), SamplingParams(logit_bias={7: 100.0}, seed=1)
    )
    logits[1] = logits[0]

    tokens = sampler.sample(logits.clone(), [SampleRow(0, 0), SampleRow(1, 1)])

    assert tokens[0].token_id == int(logits[0].topk(2).indices[1])
    assert tokens[1].token_id == 7


def test_min_tokens_holds_back_every_stop_token() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, [EOS, 40, 41]] = torch.tensor([9.0, 8.0, 7.0])
    params = SamplingParams(temperature=0.0, min_tokens=2, stop_token_ids=(40,))

    sampler = make_sampler(params)

    assert [sampler.sample(logits.clone(), [SampleRow(0, 0)])[0].token_id for _ in range(3)] == [41, 41, EOS]


def test_penalties_see_the_tokens_that_were_chosen() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, [10, 20, 30]] = torch.tensor([3.0, 2.5, 2.0])
    sampler = make_sampler(SamplingParams(temperature=0.0, presence_penalty=0.8))

    tokens = [sampler.sample(logits.clone(), [SampleRow(0, 0)])[0].token_id for _ in range(4)]

    assert tokens == [10, 20, 10, 10]


def test_logprobs_are_of_the_raw_distribution() -> None:
    logits = make_logits(1)
    expected = torch.log_softmax(logits[0].double(), dim=0)
    second = int(logits[0].topk(2).indices[1])
    params = SamplingParams(temperature=0.0, logit_bias={int(logits[0].argmax()): -100.0}, logprobs=2)

    token = make_sampler(params).sample(logits.clone(), [SampleRow(0, 0)])[0]

    assert token.logprob is not None
    assert (token.token_id, token.logprob.rank) == (second, 2)
    assert token.logprob.logprob == pytest.approx(float(expected[second]), abs=2e-6)
    assert [token_id for token_id, _ in token.logprob.top] == logits[0].topk(2).indices.tolist()


@pytest.mark.parametrize("scale", [2.0, 100.0])  # with 100 no sum of exponentials is of use
def test_sums_found_in_passing_give_the_logprobs_that_a_look_at_the_rows_gives(scale: float) -> None:
    params = [
        SamplingParams(temperature=0.0, logprobs=0),
        SamplingParams(temperature=0.0),
        SamplingParams(seed=1, logprobs=3),
        SamplingParams(temperature=0.0, logit_bias={5: 9.0}, logprobs=1),
    ]
    logits = make_logits(4, scale=scale)
    peaks = logits.argmax(1).int().numpy()
    with np.errstate(over="ignore"):
        sums = np.exp(logits.numpy()).reshape(4, 20, 25).sum(2)
    for chosen in (params[:2], params):
        rows = [SampleRow(i, i) for i in range(len(chosen))]
        want = make_sampler(*chosen).sample(logits.clone(), rows, peaks)
        sampler = make_sampler(*chosen)
        assert sampler.wants_sums(rows)
        got = sampler.sample(logits.clone(), rows, peaks, sums)
        assert [token.token_id for token in got] == [token.token_id for token in want]
        for mine, theirs in zip(got, want, strict=True):
            assert (mine.logprob is None) == (theirs.logprob is None)
            if mine.logprob is not None and theirs.logprob is not None:
                assert mine.logprob.logprob == pytest.approx(theirs.logprob.logprob, abs=1e-5)
                assert mine.logprob.rank == theirs.logprob.rank
                assert [token_id for token_id, _ in mine.logprob.top] == [
                    token_id for token_id, _ in theirs.logprob.top
                ]
    assert not make_sampler(params[1]).wants_sums([SampleRow(0, 0)])


def test_prompt_logprobs_are_those_of_the_targets() -> None:
    logits = make_logits(5)
    targets = [4, 8, 15, 16, 23]
    expected = torch.log_softmax(logits.double(), dim=1)

    found = Sampler(VOCAB, 0).prompt_logprobs(logits, targets, 1)

    assert [each.token_id for each in found] == targets
    assert [each.logprob for each in found] == pytest.approx(expected[range(5), targets].tolist(), abs=2e-6)
    assert [each.top[0][0] for each in found] == logits.argmax(dim=1).tolist()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.0),
        SamplingParams(seed=1, top_p=0.5),
        SamplingParams(seed=1, top_k=4, logprobs=3, presence_penalty=1.0),
        SamplingParams(temperature=0.0, logprobs=3),
    ],
)
def test_a_row_that_is_not_finite_fails_its_sequence_alone(bad: float, params: SamplingParams) -> None:
    logits = make_logits(3)
    expected = make_sampler(*[params] * 3).sample(logits.clone(), [SampleRow(i, i) for i in range(3)])
    logits[1, 17 if bad != -math.inf else slice(None)] = bad

    tokens = make_sampler(*[params] * 3).sample(logits, [SampleRow(i, i) for i in range(3)])

    assert tokens[0] == expected[0]
    assert tokens[2] == expected[2]
    assert tokens[1].error is not None
    assert "not finite" in tokens[1].error.message
    assert (tokens[1].token_id, tokens[1].logprob) == (EOS, None)


def test_a_removed_sequence_may_be_added_again_from_the_start() -> None:
    logits, params = make_logits(1), SamplingParams(seed=8)
    sampler = make_sampler(params)
    first = sampler.sample(logits, [SampleRow(0, 0)])

    sampler.remove(0)
    sampler.remove(0)
    sampler.add(0, params, [1, 2], [EOS], 0)

    assert sampler.sample(logits, [SampleRow(0, 0)]) == first


def test_a_grammar_is_refused_without_a_backend() -> None:
    with pytest.raises(RequestError) as caught:
        make_sampler(SamplingParams(grammar=GrammarSpec("json_object")))

    assert caught.value.param == "grammar"


def test_no_rows_give_no_tokens() -> None:
    assert make_sampler().sample(make_logits(2), []) == []
