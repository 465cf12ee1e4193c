"""The text side of Hugging Face directories, and that none of it needs torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from millpond.api.request import SamplingParams
from millpond.base.errors import CheckpointError
from millpond.inference.text import load_text, load_tokenizer
from tests.support.gguf_files import convert_model, make_model
from tests.support.tokenizer_files import TEXTS, byte_level_metadata, train_byte_level

CHAT = [{"role": "user", "content": "hi"}]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    write_json(path, "config.json", {"model_type": "qwen2", "eos_token_id": 2, "bos_token_id": 1})
    write_json(path, "tokenizer_config.json", {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}})
    train_byte_level().save(str(path / "tokenizer.json"))
    return path


def write_json(directory: Path, name: str, value: Any) -> None:
    (directory / name).write_text(json.dumps(value))


def rendered(path: Path, **options: Any) -> str | None:
    template = load_text(str(path), **options).chat_template
    return None if template is None else template.render(CHAT)


def test_a_directory_gives_tokenizer_ids_and_family(directory: Path) -> None:
    text = load_text(str(directory))
    assert (text.model_type, text.eos_token_ids, text.bos_token_id) == ("qwen2", (2,), 1)
    assert text.tokenizer.eos_token_ids == (2,)
    assert text.chat_template is None


def test_encodings_equal_those_of_transformers(directory: Path) -> None:
    write_json(directory, "config.json", {"model_type": "llama"})
    write_json(directory, "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    theirs, ours = AutoTokenizer.from_pretrained(directory), load_tokenizer(str(directory))
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text)


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"add_bos_token": True},
        {"add_eos_token": True},
        {"add_bos_token": False, "add_eos_token": False},
        {"add_bos_token": True, "add_eos_token": True},
    ],
)
def test_ends_are_added_where_transformers_adds_them(directory: Path, flags: dict[str, bool]) -> None:
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    raw = train_byte_level()
    raw.post_processor = TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
    raw.save(str(directory / "tokenizer.json"))
    write_json(directory, "config.json", {"model_type": "llama"})
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **names, **flags}
    write_json(directory, "tokenizer_config.json", config)
    theirs, ours = AutoTokenizer.from_pretrained(directory), load_tokenizer(str(directory))
    assert ours.encode("The mill") == theirs.encode("The mill")


def test_the_generation_configs_ends_come_first(directory: Path) -> None:
    write_json(directory, "generation_config.json", {"eos_token_id": [0, 2]})
    assert load_text(str(directory)).eos_token_ids == (0, 2)


@pytest.mark.parametrize("value", [None, "2", [None, True, -1], {"a": 1}])
def test_ends_that_are_no_ids_are_passed_over(directory: Path, value: Any) -> None:
    write_json(directory, "generation_config.json", {"eos_token_id": value})
    assert load_text(str(directory)).eos_token_ids == (2,)


def test_the_generation_config_sets_what_a_request_leaves_open(directory: Path) -> None:
    write_json(
        directory, "generation_config.json", {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "max_new_tokens": 3}
    )
    assert load_text(str(directory)).sampling == SamplingParams(temperature=0.6, top_p=0.9, top_k=20)


@pytest.mark.parametrize("value", ["hot", None, -1, True, [0.5], 1e300])
def test_a_generation_config_that_makes_no_sense_changes_nothing(directory: Path, value: Any) -> None:
    write_json(directory, "generation_config.json", {"temperature": value})
    assert load_text(str(directory)).sampling == SamplingParams()


def test_older_directories_name_special_tokens_in_a_map(directory: Path) -> None:
    write_json(directory, "tokenizer_config.json", {"chat_template": "{{ bos_token }}{{ unk_token }}"})
    write_json(directory, "special_tokens_map.json", {"bos_token": "<|im_start|>"})
    assert rendered(directory) == "<|im_start|>"


def test_a_template_can_be_a_text(directory: Path) -> None:
    write_json(directory, "tokenizer_config.json", {"chat_template": "{{ messages[0].content }}!"})
    assert rendered(directory) == "hi!"


def test_a_template_can_be_a_list_of_named_ones(directory: Path) -> None:
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    write_json(directory, "tokenizer_config.json", {"chat_template": named})
    template = load_text(str(directory)).chat_template
    assert template is not None
    assert (template.render(CHAT), template.render(CHAT, tools=[{}])) == ("plain", "tools")


def test_a_template_file_goes_before_the_config(directory: Path) -> None:
    write_json(directory, "tokenizer_config.json", {"chat_template": "from the config"})
    (directory / "chat_template.jinja").write_text("from the file")
    assert rendered(directory) == "from the file"


def test_additional_template_files_are_read(directory: Path) -> None:
    (directory / "chat_template.jinja").write_text("plain")
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    template = load_text(str(directory)).chat_template
    assert template is not None
    assert template.render(CHAT, tools=[{}]) == "tools"


@pytest.mark.parametrize("entry", [7, [{"name": "default"}], ["text"]])
def test_a_template_of_another_kind_is_refused(directory: Path, entry: Any) -> None:
    write_json(directory, "tokenizer_config.json", {"chat_template": entry})
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: .*chat_template"):
        load_text(str(directory))


def test_another_template_can_take_its_place(directory: Path, tmp_path: Path) -> None:
    write_json(directory, "tokenizer_config.json", {"chat_template": "its own"})
    (tmp_path / "mine.jinja").write_text("mine")
    assert rendered(directory, template_override=str(tmp_path / "mine.jinja")) == "mine"


def test_another_tokenizer_can_take_its_place(directory: Path, tmp_path: Path) -> None:
    other = train_byte_level(vocab_size=300)
    other.save(str(tmp_path / "tokenizer.json"))
    for override in (tmp_path / "tokenizer.json", tmp_path):
        tokenizer = load_tokenizer(str(directory), tokenizer_override=str(override))
        assert tokenizer.vocab_size == other.get_vocab_size()


def test_a_missing_template_file_is_named(directory: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.jinja: there is no such chat template"):
        load_text(str(directory), template_override="nowhere.jinja")


def test_a_missing_tokenizer_file_is_named(directory: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.json: there is no such tokenizer"):
        load_text(str(directory), tokenizer_override="nowhere.json")


def test_a_directory_without_tokenizer_json_is_named(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"it has no tokenizer\.json"):
        load_text(str(directory))


def test_a_sentencepiece_file_alone_is_explained(directory: Path) -> None:
    (directory / "tokenizer.json").rename(directory / "tokenizer.model")
    with pytest.raises(CheckpointError, match=r"tokenizer\.model but no tokenizer\.json.*save_pretrained"):
        load_text(str(directory))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model": {"type": "Novel"}}', "\x00" * 100])
def test_a_tokenizer_json_that_is_none_is_named(directory: Path, content: str) -> None:
    (directory / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: not a tokenizer\.json"):
        load_text(str(directory))


def test_broken_json_beside_it_is_named(directory: Path) -> None:
    (directory / "tokenizer_config.json").write_text("{broken")
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: not valid JSON"):
        load_text(str(directory))


def run_without_torch(code: str, *arguments: str) -> None:
    """Runs code in a fresh interpreter where importing torch is an error."""
    guard = "import sys; sys.modules['torch'] = None\n"
    subprocess.run([sys.executable, "-W", "error", "-c", guard + code, *arguments], check=True, timeout=60)


def test_the_text_side_of_a_gguf_file_loads_without_torch(tmp_path: Path) -> None:
    metadata = {**byte_level_metadata(train_byte_level(), "smollm"), "tokenizer.chat_template": "{{ messages }}"}
    path = convert_model(tmp_path / "tiny.gguf", "llama", make_model("llama"), metadata)
    run_without_torch(
        "from millpond.inference.text import load_text, IncrementalDetokenizer, StopChecker\n"
        "text = load_text(sys.argv[1])\n"
        "detokenizer = IncrementalDetokenizer(text.tokenizer)\n"
        "assert detokenizer.push(text.tokenizer.encode('hi')) == 'hi'\n"
        "text.chat_template.render([{'role': 'user', 'content': 'hi'}])\n",
        str(path),
    )


def test_the_text_side_of_a_directory_loads_without_torch(directory: Path) -> None:
    run_without_torch("from millpond.inference.text import load_text\nload_text(sys.argv[1])\n", str(directory))


def test_opening_and_summing_up_a_checkpoint_needs_no_torch(tmp_path: Path) -> None:
    path = convert_model(tmp_path / "tiny.gguf", "llama", make_model("llama"))
    run_without_torch(
        "from millpond.inference.weights.summary import inspect_model\n"
        "from millpond.inference.weights import catalog, open_checkpoint\n"
        "inspect_model(sys.argv[1])\n"
        "open_checkpoint(sys.argv[1]).content_digest()\n",
        str(path),
    )
