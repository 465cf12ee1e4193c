"""Grammars compiled to masks, walked token by token and sampled through the sampler."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import jsonschema_rs
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from millpond.api.request import GrammarKind, GrammarSpec, SamplingParams
from millpond.base.errors import RequestError
from millpond.inference.sampling.grammar import GrammarBackend, Matcher
from millpond.inference.sampling.grammar_bounds import GrammarLimits
from millpond.inference.sampling.sampler import Sampler, SampleRow
from tests.unit.sampling.toy_tokenizer import EOS, ToyTokenizer, make_byte_level, make_character_level

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}

CROSS_PRODUCT = {"allOf": [{"oneOf": [{"required": [f"{i}{j}"]} for j in range(9)]} for i in range(12)]}


@pytest.fixture(scope="module")
def tokenizer() -> ToyTokenizer:
    return make_byte_level()


@pytest.fixture(scope="module")
def backend(tokenizer: ToyTokenizer) -> GrammarBackend:
    return GrammarBackend(tokenizer)


def allowed_tokens(backend: GrammarBackend, matcher: Matcher) -> list[int]:
    mask = np.zeros((1, backend.mask_words), dtype=np.int32)
    backend.fill_masks([matcher], mask)
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()


def is_match(backend: GrammarBackend, tokenizer: ToyTokenizer, spec: GrammarSpec, text: str) -> bool:
    """Whether the masks let the text through, token by token, and then an end."""
    matcher = backend.make_matcher(spec)
    for token in tokenizer.encode(text):
        if token not in allowed_tokens(backend, matcher):
            return False
        assert matcher.accept(token)
    return EOS in allowed_tokens(backend, matcher)


def schema_spec(schema: object) -> GrammarSpec:
    return GrammarSpec("json_schema", json.dumps(schema))


@pytest.mark.parametrize(
    ("spec", "good", "bad"),
    [
        (GrammarSpec("json_object"), ["{}", '{"a": [1, 2.5e3, null]}', '{"é": "\\n"}'], ["[]", "1", '{"a"}', "{} "]),
        (schema_spec(PERSON), ['{"name":"Al","age":3}'], ['{"name":"Al"}', '{"name":1,"age":3}', "{}"]),
        (schema_spec({"enum": ["abc", 12, None]}), ['"abc"', "12", "null"], ['"ab"', "1", "true"]),
        (schema_spec({"type": "array", "items": {"type": "boolean"}, "maxItems": 2}), ["[]", "[true, false]"], ["[1]"]),
        (schema_spec({"type": "integer", "minimum": 5, "maximum": 12}), ["5", "12"], ["4", "13", "5.0"]),
        (schema_spec({"type": "string", "pattern": "^a+$"}), ['"aa"'], ['""', '"b"']),
        (schema_spec({"type": "string", "maxLength": 2}), ['"é1"'], ['"abc"']),
        (GrammarSpec("regex", r"[0-9]{2,3}(-x)?"), ["12", "123-x"], ["1", "1234", "12-"]),
        (GrammarSpec("regex", "^(yes|no)$"), ["yes", "no"], ["", "yesno"]),
        (GrammarSpec("choice", '["ab", "abc", "a|b", "é😀\\n"]'), ["ab", "abc", "a|b", "é😀\n"], ["a", "abcd", "b"]),
        (GrammarSpec("lark", 'start: "(" start ")" | /[a-z]+/'), ["x", "((abc))"], ["()", "(x", "x)"]),
    ],
)
def test_lets_through_what_matches_and_nothing_else(
    backend: GrammarBackend, tokenizer: ToyTokenizer, spec: GrammarSpec, good: list[str], bad: list[str]
) -> None:
    assert [text for text in good if not is_match(backend, tokenizer, spec, text)] == []
    assert [text for text in bad if is_match(backend, tokenizer, spec, text)] == []


@given(st.lists(st.text(max_size=6), min_size=1, max_size=5), st.text(max_size=6))
@example(["a", "</s>"], "</s>")
def test_a_choice_lets_through_exactly_its_strings(choices: list[str], other: str) -> None:
    tokenizer = make_byte_level()
    backend = GrammarBackend(tokenizer)
    spec = GrammarSpec("choice", json.dumps(choices))

    assert all(is_match(backend, tokenizer, spec, choice) for choice in choices)
    assert is_match(backend, tokenizer, spec, other) == (other in choices)


def test_only_an_end_can_follow_the_end(backend: GrammarBackend, tokenizer: ToyTokenizer) -> None:
    matcher = backend.make_matcher(GrammarSpec("choice", '["ab"]'))
    assert not matcher.is_finished

    for token in tokenizer.encode("ab"):
        matcher.accept(token)

    assert matcher.is_finished
    assert allowed_tokens(backend, matcher) == [EOS]
    assert matcher.accept(EOS)
    assert allowed_tokens(backend, matcher) == [EOS]
    assert matcher.error == ""


def test_every_end_token_of_the_model_may_end_a_grammar(tokenizer: ToyTokenizer) -> None:
    backend = GrammarBackend(tokenizer, eos_token_ids=[EOS, 9])
    matcher = backend.make_matcher(GrammarSpec("choice", '[""]'))

    assert allowed_tokens(backend, matcher) == [EOS, 9]


def test_a_wrong_token_is_an_error_of_its_matcher_alone(backend: GrammarBackend, tokenizer: ToyTokenizer) -> None:
    spec = GrammarSpec("choice", '["ab"]')
    wrong, right = backend.make_matcher(spec), backend.make_matcher(spec)

    assert not wrong.accept(tokenizer.encode("x")[0])

    assert wrong.error
    assert right.accept(tokenizer.encode("ab")[0])
    assert right.error == ""


def test_a_tokenizer_without_byte_rules_works_by_its_vocabulary() -> None:
    tokenizer = make_character_level()
    backend = GrammarBackend(tokenizer)

    assert is_match(backend, tokenizer, schema_spec(PERSON), '{"name":"Al","age":3}')
    assert not is_match(backend, tokenizer, schema_spec(PERSON), '{"name":"Al"}')


def test_masks_in_parallel_are_those_made_one_by_one(tokenizer: ToyTokenizer) -> None:
    one, many = GrammarBackend(tokenizer), GrammarBackend(tokenizer, threads=2)
    specs = [
        schema_spec(PERSON),
        GrammarSpec("json_object"),
        GrammarSpec("regex", "a*b"),
        GrammarSpec("regex", "x"),
    ] * 3
    mask = np.zeros((len(specs) + 2, many.mask_words), dtype=np.int32)

    many.fill_masks([many.make_matcher(spec) for spec in specs], mask)

    found = [np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist() for row in mask]
    assert found == [*(allowed_tokens(one, one.make_matcher(spec)) for spec in specs), [], []]


def test_whitespace_between_json_tokens_has_an_end(backend: GrammarBackend, tokenizer: ToyTokenizer) -> None:
    assert is_match(backend, tokenizer, GrammarSpec("json_object"), '{\n    "a": 1\n}')
    assert not is_match(backend, tokenizer, GrammarSpec("json_object"), "{" + "\n" * 100 + "}")


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("json_schema", '{"type": "strin"}'),
        ("json_schema", '{"not": {"type": "string"}}'),
        ("json_schema", '{"$ref": "#"}'),
        ("json_schema", '{"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}'),
        ("json_schema", '{"$ref": "#/$defs/missing"}'),
        ("json_schema", "false"),
        ("json_schema", '{"type": "integer", "minimum": 5, "maximum": 4}'),
        ("json_schema", '{"type": "string", "maxLength": 1e30}'),
        ("json_schema", '{"type": "number", "minimum": -1e308, "maximum": 1e308}'),
        ("json_schema", json.dumps(CROSS_PRODUCT)),
        ("json_schema", json.dumps({"type": "integer", "multipleOf": 97, "minimum": 1, "maximum": 10})),
        ("regex", "a(?=b)"),
        ("regex", r"(a)\1"),
        ("regex", "["),
        ("regex", "(" * 4000 + "a" + ")" * 4000),
        ("lark", "begin: /a/"),
        ("lark", "start: start"),
        ("lark", "start: " + "(" * 9000 + '"a"' + ")" * 9000),
        ("lark", "start: A0\n" + "\n".join(f"A{i}: A{i + 1} A{i + 1}" for i in range(40)) + '\nA40: "x"'),
    ],
)  # fmt: skip
def test_refuses_what_does_not_compile_or_matches_nothing(
    backend: GrammarBackend, kind: GrammarKind, source: str
) -> None:
    with pytest.raises(RequestError) as caught:
        backend.check(GrammarSpec(kind, source))

    assert caught.value.param == "grammar"
    assert re.fullmatch(r"The \w+ grammar .{5,280}\.", caught.value.message)


def test_a_schema_that_nothing_matches_is_called_that(backend: GrammarBackend) -> None:
    with pytest.raises(RequestError, match="No text matches it"):
        backend.check(GrammarSpec("json_schema", '{"$ref": "#"}'))


JSON_TEXT = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
).map(json.dumps)
KEYWORDS = st.sampled_from(
    ["type", "properties", "items", "required", "$ref", "$defs", "anyOf", "allOf", "oneOf", "enum", "const", "pattern",
     "minimum", "maxLength", "minItems", "prefixItems", "additionalProperties", "format", "multipleOf", "x-guidance"]
)  # fmt: skip
VALUES = st.recursive(
    st.sampled_from(
        ["string", "integer", "object", "array", "#", "#/$defs/a", "date", "^a+$", True, 1, -1, 1e9, 10**40]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYWORDS | st.just("a"), inner, max_size=3),
    max_leaves=15,
)


@settings(max_examples=300)
@given(
    st.one_of(
        st.builds(GrammarSpec, st.sampled_from(["json_schema", "regex", "choice", "lark"]), JSON_TEXT | st.text()),
        st.dictionaries(KEYWORDS, VALUES, max_size=5).map(schema_spec),
        st.text(alphabet='start:\n ab"/()|*+?{}0129%[]~&,.A', max_size=60).map(
            lambda text: GrammarSpec("lark", "start: " + text)
        ),
        st.text(alphabet="ab(){}[]\\,019^pdwx|*+?.-", max_size=40).map(lambda text: GrammarSpec("regex", text)),
    )
)
def test_hostile_text_is_refused_or_makes_a_matcher_that_can_go_on(spec: GrammarSpec) -> None:
    backend = FUZZED
    try:
        matcher = backend.make_matcher(spec)
    except RequestError:
        return
    for _ in range(5):
        tokens = allowed_tokens(backend, matcher)
        if matcher.error:
            break
        assert tokens
        assert matcher.accept(tokens[len(tokens) // 2])


FUZZED = GrammarBackend(make_byte_level())

SCHEMAS = st.recursive(
    st.sampled_from(
        [
            {"type": "string", "maxLength": 4},
            {"type": "integer", "minimum": -3, "maximum": 120},
            {"type": "boolean"},
            {"type": "null"},
            {"enum": ["abc", 12, True]},
        ]
    ),
    lambda inner: st.one_of(
        st.builds(lambda item: {"type": "array", "items": item, "maxItems": 2}, inner),
        st.builds(
            lambda members: {
                "type": "object",
                "properties": members,
                "required": sorted(members)[:1],
                "additionalProperties": False,
            },
            st.dictionaries(st.sampled_from(["a", "ab", "true", "é"]), inner, min_size=1, max_size=3),
        ),
        st.builds(lambda one, other: {"anyOf": [one, other]}, inner, inner),
    ),
    max_leaves=6,
)


@settings(max_examples=60)
@given(SCHEMAS, st.integers(0, 2**31))
def test_what_is_sampled_under_a_schema_validates(schema: dict[str, object], seed: int) -> None:
    text = sample_text(SamplingParams(grammar=schema_spec(schema), seed=seed))

    assert jsonschema_rs.is_valid(schema, json.loads(text)), text


def sample_text(params: SamplingParams, max_tokens: int = 400) -> str:
    """Samples until the end from logits that know nothing but a dislike of whitespace."""
    tokenizer = make_byte_level()
    vocab = tokenizer.raw.get_vocab_size() + 11  # wider than the tokenizer, as padded embeddings are
    logits = torch.zeros(1, vocab)
    for token, piece in enumerate(tokenizer.vocabulary):
        logits[0, token] = -3.0 if piece.strip() == b"" else 0.0
    sampler = Sampler(vocab, 0, GrammarBackend(tokenizer, vocab_size=vocab))
    sampler.add(1, params, [], [EOS], 0)
    tokens: list[int] = []
    while len(tokens) < max_tokens:
        token = sampler.sample(logits.clone(), [SampleRow(1, 0)])[0]
        assert token.error is None
        tokens.append(token.token_id)
        if token.token_id == EOS:
            return b"".join(tokenizer.vocabulary[token_id] for token_id in tokens).decode()
    raise AssertionError("the grammar did not come to an end")


def test_a_grammar_beside_other_rows_masks_its_own_row_alone() -> None:
    tokenizer = make_byte_level()
    vocab = tokenizer.raw.get_vocab_size()
    sampler = Sampler(vocab, 0, GrammarBackend(tokenizer))
    digits = GrammarSpec("regex", "[0-9]+")
    for seq_id, grammar in enumerate([None, digits, None, digits]):
        sampler.add(seq_id, SamplingParams(temperature=0.0, grammar=grammar), [], [EOS], 0)
    logits = torch.randn(4, vocab, generator=torch.Generator().manual_seed(0))
    free = logits.argmax(dim=1).tolist()

    tokens = [token.token_id for token in sampler.sample(logits, [SampleRow(i, i) for i in range(4)])]

    assert [tokens[0], tokens[2]] == [free[0], free[2]]
    assert all(tokenizer.vocabulary[token].isdigit() for token in (tokens[1], tokens[3]))


def test_a_grammar_ends_even_before_min_tokens() -> None:
    params = SamplingParams(temperature=0.0, grammar=GrammarSpec("choice", '["ab"]'), min_tokens=50)

    assert sample_text(params) == "ab"


def test_a_grammar_that_outgrows_its_fuel_ends_its_sequence_with_an_error() -> None:
    tokenizer = make_byte_level()
    vocab = tokenizer.raw.get_vocab_size()
    limits = GrammarLimits(max_lexer_states=300)
    sampler = Sampler(vocab, 0, GrammarBackend(tokenizer, limits=limits))
    spec = GrammarSpec("regex", "(.*a.{12}b|.*c.{11}d)e")
    sampler.add(0, SamplingParams(grammar=spec, seed=1, stop_token_ids=()), [], [EOS], 0)

    for _ in range(200):
        token = sampler.sample(torch.zeros(1, vocab), [SampleRow(0, 0)])[0]
        if token.error:
            break

    assert token.error is not None
    assert token.error.code == RequestError.code
    assert re.search("complex", token.error.message)
    assert token.token_id == EOS


def test_lark_grammars_have_fuel_of_their_own(tokenizer: ToyTokenizer) -> None:
    backend = GrammarBackend(tokenizer, limits=GrammarLimits(lark_mask_items=30))

    backend.check(GrammarSpec("json_schema", '{"type": "array"}'))
    with pytest.raises(RequestError, match="Too many items"):
        backend.check(GrammarSpec("lark", 'start: e\ne: e e | "[" e "]" | /[a-z]/ | ""'))


def test_a_schema_with_as_many_optional_members_as_are_taken_can_be_written(
    backend: GrammarBackend, tokenizer: ToyTokenizer
) -> None:
    most = GrammarLimits().max_properties
    spec = schema_spec({"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(most)}})

    assert is_match(backend, tokenizer, spec, f'{{"p1":1,"p{most - 1}":2}}')


def test_a_model_without_an_end_token_takes_no_grammar(tokenizer: ToyTokenizer) -> None:
    with pytest.raises(RequestError, match="no end-of-sequence token"):
        GrammarBackend(tokenizer, eos_token_ids=[]).check(GrammarSpec("json_object"))


def test_a_grammar_is_compiled_once_for_many_sequences(
    tokenizer: ToyTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = GrammarBackend(tokenizer)
    compiled = []
    compile_grammar = backend._compile
    monkeypatch.setattr(backend, "_compile", lambda spec: compiled.append(spec) or compile_grammar(spec))

    for _ in range(300):
        backend.make_matcher(schema_spec(PERSON))

    assert len(compiled) == 2  # one a 256 copies, since copies share a lexer that only grows


def test_the_gateway_can_check_grammars_without_torch() -> None:
    program = (
        "import sys; import millpond.inference.sampling.grammar, millpond.api.validate; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'llguidance', 'transformers')))"
    )

    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
