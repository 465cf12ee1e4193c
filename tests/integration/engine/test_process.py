"""The whole way: client, engine process, real executor, tiny real model."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import torch
from transformers import PreTrainedModel

from millpond.api.request import GrammarSpec, OutputEvent, Request, SamplingParams
from millpond.base.errors import CheckpointError, ConfigError
from millpond.config.load import make_config
from millpond.inference.engine.client import AsyncEngine, ClientPolicy
from millpond.inference.engine.stream import OutputStream
from tests.support.tiny_directory import write_model
from tests.support.tiny_models import make_model
from tests.support.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")
PROMPT = list(range(5, 45))
SETTINGS = {"model.dtype": "float32", "runtime.threads": 1, "cache.bytes": "4MiB"}


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return make_model("llama")


@pytest.fixture(scope="module")
def path(model: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("llama"), model)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def engine(path: str) -> AsyncIterator[AsyncEngine]:
    policy = ClientPolicy(restart_wait_s=180.0)  # a busy machine takes long to start one again
    engine = await AsyncEngine.start(make_config({"model.path": path, **SETTINGS}), policy=policy)
    yield engine
    await engine.close()


async def collect(stream: OutputStream) -> list[OutputEvent]:
    return [event async for event in stream]


def tokens_of(events: list[OutputEvent]) -> list[int]:
    return [token for event in events for token in event.token_ids]


async def test_the_tokens_are_those_of_transformers(engine: AsyncEngine, model: PreTrainedModel) -> None:
    ids = torch.tensor([PROMPT])
    output = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=20)  # type: ignore[operator]
    events = await collect(engine.generate(Request("a", PROMPT, SamplingParams(temperature=0.0, max_tokens=20))))
    assert tokens_of(events) == output[0, len(PROMPT) :].tolist()


async def test_the_start_explains_where_its_time_went(engine: AsyncEngine) -> None:
    assert {"start process", "import", "open checkpoint", "weights"} <= set(engine.info.load_seconds)
    assert all(seconds >= 0 for seconds in engine.info.load_seconds.values())


async def test_the_engine_says_what_runs(engine: AsyncEngine, path: str) -> None:
    info = engine.info
    assert (info.model, info.family, info.dtype, info.threads) == (Path(path).name, "llama", "float32", 1)
    assert info.cache_bytes <= 4 << 20


async def test_a_grammar_holds(engine: AsyncEngine) -> None:
    grammar = GrammarSpec("choice", '["yes", "no"]')
    events = await collect(engine.generate(Request("g", PROMPT, SamplingParams(max_tokens=9, grammar=grammar, seed=1))))
    assert "".join(event.text for event in events) in ("yes", "no")


async def test_it_comes_back_after_a_kill(engine: AsyncEngine) -> None:
    before = await collect(engine.generate(Request("a", PROMPT, SamplingParams(temperature=0.0))))
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGKILL)
    await eventually(lambda: engine.state == "restarting")
    after = await collect(engine.generate(Request("a", PROMPT, SamplingParams(temperature=0.0))))
    assert tokens_of(after) == tokens_of(before)


async def test_a_truncated_checkpoint_is_named_by_start(path: str, tmp_path: Path) -> None:
    for file in Path(path).iterdir():
        data = file.read_bytes()
        (tmp_path / file.name).write_bytes(data[: len(data) // 2] if file.suffix == ".safetensors" else data)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        await AsyncEngine.start(make_config({"model.path": str(tmp_path), **SETTINGS}))


async def test_a_model_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises((CheckpointError, ConfigError), match="nowhere"):
        await AsyncEngine.start(make_config({"model.path": str(tmp_path / "nowhere")}))
