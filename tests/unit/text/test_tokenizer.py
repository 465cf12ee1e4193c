"""The tokenizer's thin wrapper, against the library and against transformers."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models
from transformers import PreTrainedTokenizerFast

from millpond.base.errors import CheckpointError, RequestError
from millpond.inference.text import Tokenizer
from tests.support.tokenizer_files import (
    SPECIAL,
    TEXTS,
    metaspace_tokenizer,
    sentencepiece_tokenizer,
    train_byte_level,
    word_tokenizer,
)


@pytest.fixture(scope="module")
def byte_level() -> Tokenizer:
    return Tokenizer(train_byte_level(), eos_token_ids=[2, 0, 2], bos_token_id=1)


@pytest.mark.parametrize("text", TEXTS)
def test_encoding_equals_transformers(byte_level: Tokenizer, text: str) -> None:
    theirs = PreTrainedTokenizerFast(tokenizer_object=byte_level.raw)
    assert byte_level.encode(text) == theirs.encode(text)


@pytest.mark.parametrize("text", TEXTS)
def test_decoding_gives_the_text_back(byte_level: Tokenizer, text: str) -> None:
    assert byte_level.decode(byte_level.encode(text), skip_special_tokens=False) == text


def test_a_batch_equals_its_texts_one_by_one(byte_level: Tokenizer) -> None:
    assert byte_level.encode_batch(TEXTS) == [byte_level.encode(text) for text in TEXTS]


def test_special_tokens_are_left_out_or_kept(byte_level: Tokenizer) -> None:
    token_ids = byte_level.encode("<|im_start|>hi<|im_end|>")
    assert byte_level.decode(token_ids) == "hi"
    assert byte_level.decode(token_ids, skip_special_tokens=False) == "<|im_start|>hi<|im_end|>"


def test_special_ids_are_those_of_the_special_tokens(byte_level: Tokenizer) -> None:
    assert byte_level.special_ids == {byte_level.token_id(token) for token in SPECIAL}
    assert byte_level.is_special(1)
    assert not byte_level.is_special(100)


def test_end_of_sequence_ids_keep_their_order_once(byte_level: Tokenizer) -> None:
    assert byte_level.eos_token_ids == (2, 0)


@pytest.mark.parametrize(
    "raw",
    [train_byte_level(), sentencepiece_tokenizer(False), metaspace_tokenizer("never"), word_tokenizer()],
    ids=["byte_level", "sentencepiece", "metaspace", "words"],
)
def test_a_tokens_bytes_are_what_it_adds_to_a_text(raw: RawTokenizer) -> None:
    tokenizer = Tokenizer(raw)
    for token_id in range(tokenizer.vocab_size):
        alone = tokenizer.decode([token_id], skip_special_tokens=False)
        assert tokenizer.token_bytes(token_id).decode("utf-8", "replace") == alone


def test_the_vocabularys_bytes_are_every_tokens_bytes(byte_level: Tokenizer) -> None:
    assert byte_level.vocabulary_bytes() == [byte_level.token_bytes(index) for index in range(byte_level.vocab_size)]


def test_the_bytes_of_an_encoding_are_the_text(byte_level: Tokenizer) -> None:
    for text in TEXTS:
        assert b"".join(map(byte_level.token_bytes, byte_level.encode(text))) == text.encode()


def test_ids_outside_the_vocabulary_say_nothing(byte_level: Tokenizer) -> None:
    beyond = byte_level.vocab_size + 5
    assert (byte_level.decode([beyond]), byte_level.token_text(beyond), byte_level.token_bytes(beyond)) == ("", "", b"")


def test_half_a_surrogate_pair_is_the_requests_fault(byte_level: Tokenizer) -> None:
    with pytest.raises(RequestError, match="half of a surrogate pair at character 2"):
        byte_level.encode("ab\ud83d")
    with pytest.raises(RequestError, match="half of a surrogate pair"):
        byte_level.encode_batch(["fine", "\udc00"])


def test_truncation_and_padding_of_the_file_are_switched_off() -> None:
    raw = train_byte_level()
    raw.enable_truncation(2)
    raw.enable_padding(length=50)
    assert len(Tokenizer(raw).encode("The mill by the pond")) not in (2, 50)


def test_the_vocabulary_reaches_to_the_last_added_token() -> None:
    raw = word_tokenizer()
    assert Tokenizer(raw).vocab_size == raw.get_vocab_size() == 5


def test_a_decoder_that_cannot_be_streamed_is_refused() -> None:
    raw = RawTokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    raw.decoder = decoders.WordPiece()
    with pytest.raises(CheckpointError, match=r"decoder \(WordPiece\) is not supported"):
        Tokenizer(raw)
