"""An engine process with a fake executor, for tests of the client and the supervisor: real processes, no model.

Run by path as the supervisor's command. The model's directory holds `fake.json`: what the engine does while loading,
and how it is made.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
FAKE_ENGINE = (sys.executable, "-P", str(Path(__file__).resolve()))


def write_fake_model(directory: Path, **behaviour: Any) -> str:
    """Makes the directory of a model that the fake engine can load, and returns its path.

    Args:
        directory: Where.
        **behaviour: `error` ("checkpoint", "config", "memory" or "bug") while loading, as long as the file
            `error_until` is not there; `load_seconds`; `step_seconds`; changes to the engine's config.
    """
    from tests.support.byte_tokenizer import make_byte_tokenizer, write_tokenizer
    from tests.support.fake_executor import EOS, VOCAB_SIZE

    write_tokenizer(directory, make_byte_tokenizer(VOCAB_SIZE, EOS))
    config = {"model_type": "llama", "vocab_size": VOCAB_SIZE, "eos_token_id": EOS}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "fake.json").write_text(json.dumps(behaviour))
    return str(directory)


def load(hello: Any, progress: Any) -> SimpleNamespace:
    """Stands in for `load_engine`."""
    from millpond.api.request import EngineInfo
    from millpond.base.errors import CheckpointError, ConfigError
    from tests.support.fake_executor import EOS, VOCAB_SIZE, make_config, make_core

    behaviour = json.loads((Path(hello.model_path) / "fake.json").read_text())
    error = behaviour.pop("error", None)
    until = behaviour.pop("error_until", None)
    progress("weights", 0.5)
    if error is not None and (until is None or not Path(until).exists()):
        errors: dict[str, Exception] = {
            "checkpoint": CheckpointError("model.safetensors is cut off.", fix="Fetch it again."),
            "config": ConfigError("There are no 900 threads.", param="runtime.threads"),
            "memory": MemoryError("8 GiB are missing"),
            "bug": KeyError("oops"),
        }
        raise errors[error]
    time.sleep(behaviour.pop("load_seconds", 0.0))
    step_seconds = behaviour.pop("step_seconds", 0.0)
    config = make_config(**behaviour)
    core, _ = make_core(config, step_seconds=step_seconds)
    progress("weights", 1.0)
    info = EngineInfo(
        model=config.model_name,
        family="fake",
        dtype=config.dtype,
        dtype_reason=config.dtype_reason,
        cache_dtype=config.cache_dtype,
        executor="fake",
        isa="none",
        threads=1,
        vocab_size=VOCAB_SIZE,
        max_model_len=config.max_model_len,
        num_blocks=config.num_blocks,
        block_size=config.block_size,
        weight_bytes=0,
        cache_bytes=0,
        eos_token_ids=[EOS],
        load_seconds={"weights": 0.1},
        max_sequences=config.max_sequences,
        max_queue=config.max_queue,
    )
    return SimpleNamespace(core=core, info=info)


def main(arguments: Sequence[str]) -> int:
    """As `millpond.inference.engine.process`, with the fake."""
    import socket

    from millpond.inference.engine.process import serve, settle_in

    settle_in()
    with socket.socket(fileno=int(arguments[arguments.index("--fd") + 1])) as sock:
        return serve(sock, load)


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "src"), str(ROOT)]
    sys.exit(main(sys.argv))
