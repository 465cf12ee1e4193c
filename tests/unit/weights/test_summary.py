"""What `inspect_model` says of a model, against the model."""

from __future__ import annotations

from pathlib import Path

from millpond.inference.weights.summary import inspect_model
from tests.support.gguf_files import convert_model, make_model
from tests.support.tiny_checkpoints import make_llama_dir


def test_a_directory_is_summed_up(tmp_path: Path) -> None:
    summary = inspect_model(str(make_llama_dir(tmp_path / "model")))
    assert (summary.format, summary.family, summary.context_length) == ("safetensors", "llama", 512)
    assert (summary.tokenizer, summary.has_chat_template) == ("tokenizer.json", True)
    assert summary.bytes_by_dtype == {"F32": 4 * summary.num_parameters}


def test_a_gguf_file_is_summed_up(tmp_path: Path) -> None:
    model = make_model("qwen3")
    facts = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2", "tokenizer.chat_template": "{{ messages }}"}
    summary = inspect_model(str(convert_model(tmp_path / "tiny.gguf", "qwen3", model, facts)))
    assert (summary.format, summary.family, summary.context_length) == ("gguf", "qwen3", 256)
    assert (summary.tokenizer, summary.has_chat_template) == ("gpt2 (qwen2)", True)
    assert summary.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert summary.size_bytes == 4 * summary.num_parameters


def test_a_model_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    summary = inspect_model(str(convert_model(tmp_path / "tiny.gguf", "llama", make_model("llama"))))
    assert (summary.tokenizer, summary.has_chat_template) == (None, False)
