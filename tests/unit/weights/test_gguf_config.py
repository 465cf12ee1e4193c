"""Configs made from GGUF metadata, against the configs the models had and against transformers' reading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from millpond.base.errors import CheckpointError
from millpond.inference.weights.gguf_config import make_config
from millpond.inference.weights.gguf_file import GgufFile
from tests.support.gguf_files import FAMILIES, convert_model, make_model, model_metadata, write_gguf

EMBEDDING = {"token_embd.weight": np.zeros((80, 64), np.float32)}


def config_of(path: Path, family: str, metadata: dict[str, Any], **tensors: np.ndarray) -> dict[str, Any]:
    named = {name.replace("__", "."): data for name, data in tensors.items()}
    return make_config(GgufFile(str(write_gguf(path / "model.gguf", family, {**EMBEDDING, **named}, metadata))))


@pytest.mark.parametrize("family", FAMILIES)
def test_shapes_equal_the_model_the_file_was_made_from(family: str, tmp_path: Path) -> None:
    model = make_model(family)
    config = make_config(GgufFile(str(convert_model(tmp_path / "model.gguf", family, model))))
    rebuilt = type(model.config)(**{key: value for key, value in config.items() if key != "model_type"})
    assert config["model_type"] == model.config.model_type
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "tie_word_embeddings"):
        assert getattr(rebuilt, key) == getattr(model.config, key), key
    shapes = {name: tensor.shape for name, tensor in type(model)(rebuilt).state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "bloom"])
def test_numbers_equal_those_transformers_reads(family: str, tmp_path: Path) -> None:
    path = convert_model(tmp_path / "model.gguf", family, make_model(family))
    config = make_config(GgufFile(str(path)))
    theirs = load_gguf_checkpoint(str(path))["config"]
    common = (set(config) & set(theirs)) - {"model_type"}
    assert len(common) >= 5
    assert {key: config[key] for key in common} == {key: pytest.approx(theirs[key]) for key in common}


def test_gemma_layers_slide_but_every_sixth(tmp_path: Path) -> None:
    facts = model_metadata("gemma3", make_model("gemma3").config) | {"gemma3.block_count": 13}
    kinds = config_of(tmp_path, "gemma3", facts)["layer_types"]
    assert [index for index, kind in enumerate(kinds) if kind == "full_attention"] == [5, 11]


def test_gemma_has_its_own_base_for_sliding_layers(tmp_path: Path) -> None:
    config = config_of(tmp_path, "gemma3", model_metadata("gemma3", make_model("gemma3").config))
    assert (config["rope_theta"], config["rope_local_base_freq"]) == (500_000.0, 10_000.0)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_factors_become_the_four_numbers_again(tmp_path: Path, factor: float) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_theta": 500_000.0,
    }
    shape = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 131072}
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](LlamaConfig(rope_parameters=scaling, **shape), torch.device("cpu"))
    plain = 500_000.0 ** -(np.arange(0, 64, 2) / 64)
    facts = model_metadata("llama", make_model("llama").config)
    facts |= {"llama.embedding_length": 256, "llama.rope.dimension_count": 64}
    factors = (plain / scaled.numpy()).astype(np.float32)
    config = config_of(tmp_path, "llama", facts, rope_freqs__weight=factors)
    del scaling["rope_theta"]
    assert config["rope_scaling"] == pytest.approx(scaling)


def test_other_factors_are_refused(tmp_path: Path) -> None:
    facts = model_metadata("llama", make_model("llama").config)
    with pytest.raises(CheckpointError, match="not those of Llama 3"):
        config_of(tmp_path, "llama", facts, rope_freqs__weight=np.array([1, 2, 3, 1, 1, 1, 1, 1], np.float32))


def test_linear_scaling_is_kept(tmp_path: Path) -> None:
    facts = model_metadata("gemma3", make_model("gemma3").config)
    facts |= {"gemma3.rope.scaling.type": "linear", "gemma3.rope.scaling.factor": 8.0}
    assert config_of(tmp_path, "gemma3", facts)["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}


def test_yarn_scaling_is_kept(tmp_path: Path) -> None:
    facts = model_metadata("qwen2", make_model("qwen2").config)
    facts |= {
        "qwen2.rope.scaling.type": "yarn",
        "qwen2.rope.scaling.factor": 4.0,
        "qwen2.rope.scaling.original_context_length": 32768,
    }
    expected = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    assert config_of(tmp_path, "qwen2", facts)["rope_scaling"] == expected


def test_an_output_tensor_unties_the_embeddings(tmp_path: Path) -> None:
    facts = model_metadata("llama", make_model("llama").config)
    config = config_of(tmp_path, "llama", facts, output__weight=np.zeros((80, 64), np.float32))
    assert config["tie_word_embeddings"] is False


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"general.architecture": "mamba"}, "the architecture 'mamba' is not supported"),
        ({"llama.expert_count": 8}, "mixture-of-experts models are not supported"),
        ({"llama.block_count": 1 << 30}, "block_count is out of range"),
        ({"llama.attention.head_count": 0}, "make no model"),
        ({"llama.attention.head_count_kv": 3}, "4 heads over 3 key heads"),
        ({"llama.rope.scaling.type": "longrope"}, "the rotary scaling 'longrope' is not supported"),
        ({"llama.feed_forward_length": "many"}, "no number llama.feed_forward_length"),
    ],
)
def test_metadata_that_makes_no_model_is_named(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    facts = model_metadata("llama", make_model("llama").config)
    file = GgufFile(str(write_gguf(tmp_path / "model.gguf", "llama", EMBEDDING, facts)))
    file.metadata.update(change)
    with pytest.raises(CheckpointError, match=reason):
        make_config(file)


def test_a_file_without_embeddings_is_refused(tmp_path: Path) -> None:
    facts = model_metadata("llama", make_model("llama").config)
    path = write_gguf(tmp_path / "model.gguf", "llama", {"output_norm.weight": np.zeros(64, np.float32)}, facts)
    with pytest.raises(CheckpointError, match=r"'token_embd\.weight': there is no such tensor"):
        make_config(GgufFile(str(path)))
