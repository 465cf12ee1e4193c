"""Text in and out: tokenizers, incremental detokenising, stop strings, chat templates. Imports no torch."""

from millpond.inference.text.chat_template import ChatTemplate
from millpond.inference.text.detokenizer import IncrementalDetokenizer
from millpond.inference.text.load import TextModel, load_text, load_tokenizer
from millpond.inference.text.stop import StopChecker
from millpond.inference.text.tokenizer import Tokenizer

__all__ = [
    "ChatTemplate",
    "IncrementalDetokenizer",
    "StopChecker",
    "TextModel",
    "Tokenizer",
    "load_text",
    "load_tokenizer",
]
