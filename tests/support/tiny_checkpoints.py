"""Whole tiny models on disk, made in the test: random Llama weights, a byte-level BPE tokenizer, a chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from millpond.inference.text import ChatTemplate, TextModel, Tokenizer

SPECIAL = ("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
VOCAB_SIZE = 384
CORPUS = [
    "The mill by the pond turns while the water runs.",
    "A small language model answers every question it is asked.",
    '{"name": "get_weather", "arguments": {"city": "Bern", "days": 3}}',
    "Hello! How are you? I am well, thank you.",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_raw_tokenizer() -> tokenizers.Tokenizer:
    """A byte-level BPE tokenizer that can encode any text."""
    raw = tokenizers.Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(CORPUS * 4, trainer)
    return raw


def make_text(chat_template: str | None = CHAT_TEMPLATE) -> TextModel:
    """The text side of the same model, without files."""
    raw = make_raw_tokenizer()
    eos = raw.token_to_id("<|im_end|>")
    return TextModel(
        tokenizer=Tokenizer(raw, eos_token_ids=(eos,), bos_token_id=raw.token_to_id("<s>")),
        chat_template=None if chat_template is None else ChatTemplate(chat_template),
        eos_token_ids=(eos,),
        bos_token_id=raw.token_to_id("<s>"),
        model_type="llama",
    )


def make_llama_dir(directory: Path, *, seed: int = 0, **config: Any) -> Path:
    """Writes a Hugging Face directory and returns it; `config` overrides the model's shape."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    directory.mkdir(parents=True, exist_ok=True)
    raw = make_raw_tokenizer()
    shape = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 512,
    }
    ids = {"bos_token_id": raw.token_to_id("<s>"), "eos_token_id": raw.token_to_id("<|im_end|>"), "pad_token_id": 0}
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**(shape | ids | {"vocab_size": raw.get_vocab_size()} | config)))
    model.save_pretrained(directory)
    raw.save(str(directory / "tokenizer.json"))
    settings = {"chat_template": CHAT_TEMPLATE, "bos_token": "<s>", "eos_token": "<|im_end|>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory
