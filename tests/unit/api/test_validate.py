"""The ranges of sampling parameters."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millpond.api.request import GrammarSpec, SamplingParams
from millpond.api.validate import MAX_LOGIT_BIASES, check_sampling
from millpond.base.errors import RequestError

VOCAB = 1000
HUGE = 10**5000
FIELDS = [field.name for field in msgspec.structs.fields(SamplingParams)]


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.0, top_k=-1, top_p=0.0, min_p=1.0, max_tokens=None),
        SamplingParams(temperature=1e308, top_p=1, presence_penalty=-2, frequency_penalty=2),
        SamplingParams(n=128, logprobs=20, prompt_logprobs=0, seed=-(2**63), min_tokens=16),
        SamplingParams(logit_bias={0: -100.0, VOCAB - 1: 100}, stop_token_ids=(0, VOCAB - 1), stop=("x" * 1024,)),
        SamplingParams(beam_width=32, n=32, length_penalty=-1.0, early_stopping=True),
        SamplingParams(grammar=GrammarSpec("json_object")),
        SamplingParams(bad_words_ids=((0,) * 128,) * 1024),
    ],
)
def test_accepts_the_ends_of_every_range(params: SamplingParams) -> None:
    check_sampling(params, VOCAB)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("n", [0, -1, 129, HUGE, 1.0, True, "1", None]),
        ("temperature", [-0.1, math.nan, math.inf, -math.inf, "hot", None, True, [1], 10**400, HUGE]),
        ("top_k", [-2, 2**31, HUGE, 1.5, math.nan]),
        ("top_p", [-0.01, 1.01, math.nan, math.inf, "1"]),
        ("min_p", [-0.01, 1.01, math.nan]),
        ("repetition_penalty", [0.0, -1.0, 1e300, math.nan, math.inf]),
        ("presence_penalty", [-2.1, 2.1, math.nan]),
        ("frequency_penalty", [-2.1, 2.1, math.nan]),
        ("seed", [2**63, -(2**63) - 1, HUGE, 0.5, True, "1"]),
        ("max_tokens", [0, -1, HUGE, 1.5]),
        ("min_tokens", [-1, 17, HUGE, None]),
        ("logprobs", [-1, 21, HUGE, True]),
        ("prompt_logprobs", [-1, 21, HUGE]),
        ("beam_width", [0, 33, HUGE]),
        ("bad_words_ids", [None, 3, ((),), ((VOCAB,),), ((1, -1),), ((1,) * 129,), ((1,),) * 1025]),
        ("length_penalty", [math.nan, math.inf, 101.0]),
        ("ignore_eos", [None, 1, "yes"]),
        ("skip_special_tokens", [None, 0]),
        ("include_stop_str_in_output", ["no"]),
        ("early_stopping", [2]),
        ("logit_bias", [[], {VOCAB: 1.0}, {-1: 1.0}, {"1": 1.0}, {True: 1.0}, {HUGE: 1.0}, {1: math.nan}, {1: 100.1}]),
        ("logit_bias", [{1: math.inf}, {1: "x"}, {1: None}, dict.fromkeys(range(MAX_LOGIT_BIASES + 1), 1.0)]),
        ("stop", ["x", None, ("",), (1,), ("x" * 1025,), ("x",) * 65, [[]], {"x"}]),
        ("stop_token_ids", [1, None, (VOCAB,), (-1,), ("1",), (True,), (1.0,), (1,) * 1025, ([HUGE],)]),
        ("grammar", ["{}", {"kind": "regex"}, GrammarSpec("regex", "a" * 200_000), GrammarSpec("regex", 1)]),
    ],
)
def test_refuses_what_is_out_of_range_or_of_another_type_and_names_the_field(field: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(RequestError) as caught:
            check_sampling(SamplingParams(**{field: value}), VOCAB)

        assert caught.value.param == field
        assert caught.value.fix
        assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    ("params", "field"),
    [
        (SamplingParams(min_tokens=5, max_tokens=4), "min_tokens"),
        (SamplingParams(beam_width=4, n=5), "n"),
        (SamplingParams(beam_width=4, grammar=GrammarSpec("json_object")), "grammar"),
    ],
)
def test_refuses_fields_that_contradict_each_other(params: SamplingParams, field: str) -> None:
    with pytest.raises(RequestError) as caught:
        check_sampling(params, VOCAB)

    assert caught.value.param == field


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.integers() | st.text(max_size=2), inner, max_size=3),
)


@given(st.dictionaries(st.sampled_from(FIELDS), ANYTHING, max_size=4))
def test_any_values_pass_or_are_refused_with_the_field_at_fault(values: dict[str, Any]) -> None:
    try:
        check_sampling(SamplingParams(**values), VOCAB)
    except RequestError as error:
        refused = error.param
    else:
        refused = None
    assert refused is None or refused in FIELDS


def test_every_field_is_checked() -> None:
    for field in FIELDS:
        with pytest.raises(RequestError) as caught:
            check_sampling(SamplingParams(**{field: object()}), VOCAB)
        assert caught.value.param == field


def test_checking_imports_no_torch() -> None:
    program = "import sys; import millpond.api.validate; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
