"""One client on one fake engine process for the tests that leave it alive; a factory for those that do not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from millpond.config.load import make_config
from millpond.inference.engine.client import AsyncEngine, ClientPolicy
from millpond.inference.engine.supervisor import RestartPolicy
from tests.support.fake_engine import FAKE_ENGINE, write_fake_model

StartEngine = Callable[..., Awaitable[AsyncEngine]]
FAST = RestartPolicy(first_delay_s=0.01, longest_delay_s=0.05)


@pytest_asyncio.fixture
async def start_engine(tmp_path: Path) -> AsyncIterator[StartEngine]:
    """Starts engines that behave as told, and closes them."""
    engines: list[AsyncEngine] = []

    async def start(*, restart_wait_s: float = 20.0, on_progress: Any = None, **behaviour: Any) -> AsyncEngine:
        directory = tmp_path / f"model{len(engines)}"
        directory.mkdir()
        config = make_config({"model.path": write_fake_model(directory, **behaviour)})
        policy = ClientPolicy(restart_wait_s=restart_wait_s, restart=FAST)
        engine = await AsyncEngine.start(config, on_progress, command=FAKE_ENGINE, policy=policy)
        engines.append(engine)
        return engine

    yield start
    for engine in engines:
        await engine.close()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[AsyncEngine]:
    """An engine that the tests of a module share."""
    directory = tmp_path_factory.mktemp("model")
    config = make_config({"model.path": write_fake_model(directory, num_blocks=512, step_seconds=0.001)})
    engine = await AsyncEngine.start(config, command=FAKE_ENGINE)
    yield engine
    await engine.close()
