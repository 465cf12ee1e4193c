from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.tiny_checkpoints import make_llama_dir


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with tokenizer and chat template, in a directory."""
    return make_llama_dir(tmp_path_factory.mktemp("cli") / "tiny")
