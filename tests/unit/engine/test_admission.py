"""What can be known to be wrong is said before any work starts."""

from __future__ import annotations

import pytest

from millpond.api.request import EngineInfo, Request, SamplingParams
from millpond.base.errors import ContextLengthError, RequestError
from millpond.inference.engine.admission import check_request


def info(**changes: object) -> EngineInfo:
    values: dict[str, object] = {
        "model": "m",
        "family": "llama",
        "dtype": "float32",
        "dtype_reason": "",
        "cache_dtype": "float32",
        "executor": "native",
        "isa": "avx2",
        "threads": 1,
        "vocab_size": 100,
        "max_model_len": 64,
        "num_blocks": 8,
        "block_size": 32,
        "weight_bytes": 0,
        "cache_bytes": 0,
        "eos_token_ids": [2],
        "load_seconds": {},
        "max_sequences": 4,
        "max_queue": 4,
    }
    return EngineInfo(**(values | changes))  # type: ignore[arg-type]


def ask(length: int = 4, **params: object) -> Request:
    return Request("r", [5] * length, SamplingParams(**params))  # type: ignore[arg-type]


def test_a_request_that_fits_exactly_is_admitted_as_it_is() -> None:
    request = ask(60, max_tokens=4)
    assert check_request(request, info()) is request


def test_one_token_more_is_too_long() -> None:
    with pytest.raises(ContextLengthError, match="4 tokens at most") as refused:
        check_request(ask(60, max_tokens=5), info())
    assert refused.value.param == "max_tokens"


def test_max_tokens_becomes_what_is_left() -> None:
    assert check_request(ask(60, max_tokens=None), info()).params.max_tokens == 4


def test_a_prompt_that_leaves_no_room_is_too_long() -> None:
    with pytest.raises(ContextLengthError) as refused:
        check_request(ask(64, max_tokens=None), info())
    assert refused.value.param == "prompt"


def test_a_cache_smaller_than_the_context_counts() -> None:
    """The last token is sampled and needs no place, so one more than the cache holds is fine."""
    small = info(num_blocks=1)
    assert check_request(ask(30, max_tokens=3), small)
    with pytest.raises(ContextLengthError):
        check_request(ask(30, max_tokens=4), small)


@pytest.mark.parametrize("token_ids", [[], [5, -1], [100, 5]])
def test_a_prompt_must_be_made_of_the_vocabulary(token_ids: list[int]) -> None:
    with pytest.raises(RequestError) as refused:
        check_request(Request("r", token_ids, SamplingParams()), info())
    assert refused.value.param == "prompt"


@pytest.mark.parametrize("params", [{"n": 9}, {"beam_width": 9}])
def test_more_sequences_than_the_engine_holds_can_never_run(params: dict[str, int]) -> None:
    with pytest.raises(RequestError, match="8 at most"):
        check_request(ask(**params), info())


@pytest.mark.parametrize("deadline_s", [0.0, -1.0, float("nan")])
def test_a_deadline_lies_in_the_future(deadline_s: float) -> None:
    with pytest.raises(RequestError) as refused:
        check_request(Request("r", [5], SamplingParams(), deadline_s=deadline_s), info())
    assert refused.value.param == "deadline_s"


@pytest.mark.parametrize(
    "params",
    [
        {"stop": ("x",)},
        {"stop_token_ids": tuple(range(17))},
        {"min_tokens": 1},
        {"logit_bias": {3: 1.0}},
        {"repetition_penalty": 1.1},
        {"prompt_logprobs": 1},
    ],
)
def test_beam_search_refuses_what_it_would_ignore(params: dict[str, object]) -> None:
    with pytest.raises(RequestError) as refused:
        check_request(ask(beam_width=2, **params), info())
    assert refused.value.param in params


def test_the_engines_limits_agree_with_its_scheduler() -> None:
    """Whatever admission passes, the scheduler takes; one more and both refuse."""
    from millpond.inference.kv import BlockHasher, KVCache
    from millpond.inference.sched import Scheduler, SchedulerLimits, Sequence

    for num_blocks in (1, 2, 8):
        engine = info(num_blocks=num_blocks)
        hasher = BlockHasher(block_size=32, weights_digest="", dtype="")
        scheduler = Scheduler(SchedulerLimits(32, 4, 4, 64), KVCache(num_blocks, hasher))
        for length in (1, 31, 32, 33, 63, 64):
            admitted = True
            try:
                request = check_request(ask(length, max_tokens=None), engine)
            except ContextLengthError:
                admitted = False
                request = ask(length, max_tokens=1)
            assert request.params.max_tokens is not None
            tokens = request.prompt_token_ids
            seq = Sequence(seq_id=length, request_id="r", prompt_token_ids=tokens, max_tokens=request.params.max_tokens)
            if admitted:
                scheduler.add(seq)
                assert seq.max_total_tokens == length + request.params.max_tokens
                scheduler.cancel(length)
            else:
                with pytest.raises(ContextLengthError):
                    scheduler.add(seq)
