"""A tiny random model of `tiny_models` as a Hugging Face directory, with a tokenizer that needs no training."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from tests.support.byte_tokenizer import make_byte_tokenizer, write_tokenizer
from tests.support.tiny_models import VOCAB

EOS = 2
SPECIAL = (0, 1)
CHAT_TEMPLATE = "{% for message in messages %}[{{ message.role }}] {{ message.content }}\n{% endfor %}"


def write_model(directory: Path, model: PreTrainedModel) -> str:
    """Saves the model, its tokenizer and a chat template; returns the path."""
    model.save_pretrained(directory)
    write_tokenizer(directory, make_byte_tokenizer(VOCAB, EOS, SPECIAL), CHAT_TEMPLATE)
    return str(directory)
