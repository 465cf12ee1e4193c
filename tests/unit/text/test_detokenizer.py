"""Incremental decoding against decoding everything at once, for every kind of decoder."""

from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as RawTokenizer

from millpond.inference.text import IncrementalDetokenizer, Tokenizer
from tests.support.tokenizer_files import (
    TEXTS,
    metaspace_tokenizer,
    sentencepiece_tokenizer,
    train_byte_level,
    word_tokenizer,
)

KINDS: dict[str, RawTokenizer] = {
    "byte_level": train_byte_level(),
    "llama": sentencepiece_tokenizer(True),
    "gemma": sentencepiece_tokenizer(False),
    "metaspace": metaspace_tokenizer("always"),
    "metaspace_never": metaspace_tokenizer("never"),
    "words": word_tokenizer(),
}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer(KINDS[request.param])


def pieces(data: st.DataObject, tokenizer: Tokenizer) -> list[list[int]]:
    """Token ids in pushes; byte tokens are likelier than chance, for that is where decoders differ."""
    ids = st.integers(0, tokenizer.vocab_size + 2) | st.integers(3, min(258, tokenizer.vocab_size))
    return data.draw(st.lists(st.lists(ids, max_size=4), max_size=12))


@given(data=st.data(), skips=st.booleans())
def test_deltas_add_up_to_the_decoded_whole(tokenizer: Tokenizer, data: st.DataObject, skips: bool) -> None:
    pushes = pieces(data, tokenizer)
    detokenizer = IncrementalDetokenizer(tokenizer, skips)
    text = "".join(detokenizer.push(token_ids) for token_ids in pushes) + detokenizer.flush()
    assert text == tokenizer.raw.decode([*chain(*pushes)], skip_special_tokens=skips)


@pytest.mark.parametrize("text", TEXTS)
def test_no_delta_holds_half_a_character(text: str) -> None:
    tokenizer = Tokenizer(KINDS["byte_level"])
    detokenizer = IncrementalDetokenizer(tokenizer, skip_special_tokens=False)
    sent = ""
    for token_id in tokenizer.encode(text):
        sent += detokenizer.push([token_id])
        assert text.startswith(sent)
    assert sent + detokenizer.flush() == text


def test_characters_of_byte_tokens_come_whole() -> None:
    tokenizer = Tokenizer(KINDS["gemma"])
    detokenizer = IncrementalDetokenizer(tokenizer)
    deltas = [detokenizer.push([3 + byte]) for byte in "é🎉".encode()]
    assert deltas == [""] * 6
    assert detokenizer.push([tokenizer.token_id("the") or 0]) == "é🎉the"


def test_bytes_that_are_no_character_become_replacements_at_the_end() -> None:
    tokenizer = Tokenizer(KINDS["byte_level"])
    detokenizer = IncrementalDetokenizer(tokenizer)
    first_byte = next(index for index in range(tokenizer.vocab_size) if tokenizer.token_bytes(index) == b"\xf0")
    assert detokenizer.push([first_byte]) == ""
    assert detokenizer.flush() == "\ufffd"


def test_what_is_held_back_does_not_grow_with_the_text() -> None:
    detokenizer = IncrementalDetokenizer(Tokenizer(KINDS["byte_level"]))
    lengths = [len(detokenizer.push([100 + index % 200])) for index in range(5000)]
    assert sum(lengths[-100:]) > 50
