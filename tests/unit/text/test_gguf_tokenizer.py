"""Tokenizers built from GGUF metadata, against the tokenizers the metadata was written from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer
from transformers.integrations.gguf.gguf_tokenizer_mapping import convert_gguf_tokenizer, get_gguf_tokenizer

from millpond.base.errors import CheckpointError
from millpond.inference.text import TextModel, Tokenizer, load_text
from tests.support.gguf_files import make_model, model_metadata, write_gguf
from tests.support.tokenizer_files import (
    TEXTS,
    byte_level_metadata,
    sentencepiece_ids,
    sentencepiece_metadata,
    train_byte_level,
)

# As the tokenizer.json files of the models have them.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"  # noqa: RUF001 - the model's own
PLAIN = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
CUTS: dict[str, pre_tokenizers.PreTokenizer] = {
    "gpt-2": GPT2,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2]),
    "starcoder": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2]),
    "llama-bpe": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), PLAIN]),
    "qwen2": pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")), "isolated"), PLAIN]
    ),
    "bloom": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(BLOOM), "isolated"), PLAIN]),
}
EMBEDDING = {"token_embd.weight": np.zeros((80, 64), np.float32)}
Load = Callable[..., TextModel]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    return lambda metadata: load_text(str(write_tokenizer(tmp_path, metadata)))


def write_tokenizer(directory: Path, metadata: dict[str, Any]) -> Path:
    facts = model_metadata("llama", make_model("llama").config)
    return write_gguf(directory / "model.gguf", "llama", EMBEDDING, {**facts, **metadata})


@pytest.mark.parametrize("pre", CUTS)
def test_byte_level_encodings_equal_the_original_tokenizers(load: Load, pre: str) -> None:
    original = train_byte_level(CUTS[pre])
    if pre == "qwen2":
        original.normalizer = normalizers.NFC()
    tokenizer = load({**byte_level_metadata(original, pre), "tokenizer.ggml.add_bos_token": False}).tokenizer
    for text in TEXTS:
        assert tokenizer.encode(text) == original.encode(text).ids, text
        assert tokenizer.decode(tokenizer.encode(text)) == original.decode(original.encode(text).ids)


@pytest.mark.parametrize("pre", ["llama-bpe", "tekken"])
def test_byte_level_encodings_equal_those_transformers_makes_of_the_file(tmp_path: Path, pre: str) -> None:
    path = write_tokenizer(tmp_path, {**byte_level_metadata(train_byte_level(), pre)})
    architecture, tokenizer_dict, _ = get_gguf_tokenizer(str(path))
    theirs = PreTrainedTokenizerFast(tokenizer_object=convert_gguf_tokenizer(architecture, tokenizer_dict)[0])
    ours = load_text(str(path)).tokenizer
    for text in TEXTS:
        assert ours.encode(text, add_special_tokens=False) == theirs.encode(text, add_special_tokens=False), text


def test_qwen_encodings_equal_transformers_own_class(load: Load) -> None:
    metadata = byte_level_metadata(train_byte_level(), "qwen2")
    vocabulary = {token: index for index, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    theirs = Qwen2Tokenizer(vocab=vocabulary, merges=merges)
    ours = load(metadata).tokenizer
    for text in TEXTS:
        if "<|im" not in text:  # that class gives these tokens other ids
            assert ours.encode(text) == theirs.encode(text), text


@given(text=st.text(alphabet="he llowrdtaning=\n日本語é🎉▁", max_size=40), adds_space=st.booleans())
def test_sentencepiece_encodings_equal_the_algorithm_by_brute_force(
    tmp_path_factory: pytest.TempPathFactory, text: str, adds_space: bool
) -> None:
    directory = tmp_path_factory.getbasetemp() / f"sentencepiece-{adds_space}"
    if not directory.exists():
        directory.mkdir()
        write_tokenizer(directory, sentencepiece_metadata(adds_space))
    tokenizer = load_text(str(directory / "model.gguf")).tokenizer
    assert tokenizer.encode(text, add_special_tokens=False) == sentencepiece_ids(text, adds_space)


@pytest.mark.parametrize("adds_space", [True, False])
def test_sentencepiece_decodings_give_the_text_back(load: Load, adds_space: bool) -> None:
    tokenizer = load(sentencepiece_metadata(adds_space)).tokenizer
    for text in TEXTS:
        kept = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(kept, skip_special_tokens=False) == text or "<s>" in text


def test_runs_of_spaces_are_whole_tokens_as_in_gemma(load: Load) -> None:
    metadata = sentencepiece_metadata(adds_space=False)
    for run in ("  ", "    "):
        metadata["tokenizer.ggml.tokens"].append(run)
        metadata["tokenizer.ggml.scores"].append(-1000.0)
        metadata["tokenizer.ggml.token_type"].append(4)
    tokenizer = load(metadata).tokenizer
    first, second = len(metadata["tokenizer.ggml.tokens"]) - 2, len(metadata["tokenizer.ggml.tokens"]) - 1
    assert tokenizer.encode("a      ", add_special_tokens=False)[1:] == [second, first]
    assert tokenizer.decode([second, first]) == " " * 6


def test_control_tokens_are_special_and_user_defined_ones_are_text(load: Load) -> None:
    metadata = byte_level_metadata(train_byte_level(), "gpt-2")
    metadata["tokenizer.ggml.tokens"].append("<think>")
    metadata["tokenizer.ggml.token_type"].append(4)
    tokenizer = load(metadata).tokenizer
    token_ids = tokenizer.encode("<think>a<|im_end|>")
    assert (token_ids[0], token_ids[-1]) == (len(metadata["tokenizer.ggml.tokens"]) - 1, 2)
    assert tokenizer.decode(token_ids) == "<think>a"


@pytest.mark.parametrize(
    ("pre", "change", "adds"),
    [
        ("gpt-2", {}, False),
        ("gpt-2", {"tokenizer.ggml.add_bos_token": True}, True),
        ("llama-bpe", {}, True),
        ("llama-bpe", {"tokenizer.ggml.add_bos_token": False}, False),
    ],
)
def test_the_beginning_token_is_added_where_the_model_wants_it(
    load: Load, pre: str, change: dict[str, Any], adds: bool
) -> None:
    text = load({**byte_level_metadata(train_byte_level(), pre), **change})
    assert text.bos_token_id == 1
    assert (text.tokenizer.encode("a")[0] == 1) is adds
    assert text.tokenizer.encode("a", add_special_tokens=False)[0] != 1


def test_sentencepiece_adds_the_beginning_token_unless_told_not_to(load: Load) -> None:
    assert load(sentencepiece_metadata()).tokenizer.encode("the")[0] == 1
    metadata = {**sentencepiece_metadata(), "tokenizer.ggml.add_bos_token": False}
    assert load(metadata).tokenizer.encode("the")[0] != 1


def test_every_token_that_ends_a_turn_is_an_end(load: Load) -> None:
    metadata = byte_level_metadata(train_byte_level(), "gpt-2")
    assert load(metadata).eos_token_ids == (2, 0)  # <|im_end|> by name of the file, <|endoftext|> by its text
    assert load({**metadata, "tokenizer.ggml.eot_token_id": 7}).eos_token_ids == (2, 7, 0)


def test_an_ordinary_word_that_looks_like_an_end_is_none(load: Load) -> None:
    metadata = byte_level_metadata(train_byte_level(), "gpt-2")
    metadata["tokenizer.ggml.token_type"][0] = 1
    assert load(metadata).eos_token_ids == (2,)


def test_the_chat_template_sees_the_special_tokens(load: Load) -> None:
    metadata = byte_level_metadata(train_byte_level(), "gpt-2")
    metadata["tokenizer.chat_template"] = "{{ bos_token }}|{{ messages[0].content }}|{{ eos_token }}"
    template = load(metadata).chat_template
    assert template is not None
    assert template.render([{"role": "user", "content": "hi"}]) == "<|im_start|>|hi|<|im_end|>"


def test_named_chat_templates_are_kept_apart(load: Load) -> None:
    metadata = byte_level_metadata(train_byte_level(), "gpt-2")
    metadata |= {"tokenizer.chat_template": "plain", "tokenizer.chat_template.tool_use": "tools"}
    template = load(metadata).chat_template
    assert template is not None
    assert template.render([{"role": "user"}]) == "plain"
    assert template.render([{"role": "user"}], tools=[{"name": "f"}]) == "tools"


BAD_CHANGES: dict[str, dict[str, Any]] = {
    "the tokenizer kind 'rwkv' is not supported": {"tokenizer.ggml.model": "rwkv"},
    "the pre-tokenizer 'novel' is not supported": {"tokenizer.ggml.pre": "novel"},
    "'nomerge' is not a merge of two tokens": {"tokenizer.ggml.merges": ["nomerge"]},
    "its merges do not fit its vocabulary": {"tokenizer.ggml.merges": ["zz qq"]},
    "it gives kinds for other than its": {"tokenizer.ggml.token_type": [1, 2]},
    "its bos token 99999 is not in its vocabulary": {"tokenizer.ggml.bos_token_id": 99999},
    "its vocabulary has 'a' twice": {"tokenizer.ggml.tokens": ["a", "b", "a"], "tokenizer.ggml.token_type": [1] * 3},
}


@pytest.mark.parametrize(("reason", "change"), BAD_CHANGES.items(), ids=BAD_CHANGES.keys())
def test_metadata_that_makes_no_tokenizer_is_named(load: Load, reason: str, change: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=rf"model\.gguf: {reason}"):
        load({**byte_level_metadata(train_byte_level(), "gpt-2"), **change})


def test_missing_merges_are_named(load: Load) -> None:
    metadata = byte_level_metadata(train_byte_level(), "gpt-2")
    del metadata["tokenizer.ggml.merges"]
    with pytest.raises(CheckpointError, match="its metadata has no merges"):
        load(metadata)


def test_a_file_without_a_tokenizer_is_named(load: Load) -> None:
    with pytest.raises(CheckpointError, match=r"no string tokenizer\.ggml\.model"):
        load({})


def test_missing_scores_are_named(load: Load) -> None:
    metadata = sentencepiece_metadata()
    del metadata["tokenizer.ggml.scores"]
    with pytest.raises(CheckpointError, match="it gives no score"):
        load(metadata)


def test_another_tokenizer_can_take_its_place(tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path, {"tokenizer.ggml.model": "rwkv", "tokenizer.ggml.tokens": ["a"]})
    other = train_byte_level()
    other.save(str(tmp_path / "tokenizer.json"))
    text = load_text(str(path), tokenizer_override=str(tmp_path / "tokenizer.json"))
    assert isinstance(text.tokenizer, Tokenizer)
    assert text.tokenizer.encode("Hello") == other.encode("Hello").ids
