"""Engine processes that start, fail, die, come back and end, under a client that outlives them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from millpond.api.request import OutputEvent, Request, SamplingParams
from millpond.base.errors import CheckpointError, ConfigError, EngineDeadError
from millpond.inference.engine.client import AsyncEngine
from millpond.inference.engine.stream import OutputStream
from millpond.inference.engine.supervisor import RestartPolicy
from tests.integration.engine.conftest import StartEngine
from tests.support.fake_engine import FAKE_ENGINE, ROOT, write_fake_model
from tests.support.fake_executor import expected_tokens
from tests.support.waiting import eventually


def request(first: int = 1, **changes: object) -> Request:
    params = {"temperature": 0.0, "max_tokens": 20, "ignore_eos": True} | changes
    return Request(f"r{first}", [first, 2, 3], SamplingParams(**params))  # type: ignore[arg-type]


async def collect(stream: OutputStream) -> list[OutputEvent]:
    return [event async for event in stream]


def tokens_of(events: list[OutputEvent]) -> list[int]:
    return [token for event in events for token in event.token_ids]


def kill(engine: AsyncEngine, how: signal.Signals = signal.SIGKILL) -> int:
    assert engine.pid is not None
    pid = engine.pid
    os.kill(pid, how)
    return pid


async def test_a_killed_engine_fails_its_running_requests_and_is_back(start_engine: StartEngine) -> None:
    engine = await start_engine(step_seconds=0.005)
    streams = [engine.generate(request(i, max_tokens=200, n=2)) for i in range(3)]
    for stream in streams:
        await anext(stream)
    pid = kill(engine)
    for stream in streams:
        events = await collect(stream)
        ends = [event for event in events if event.finish_reason is not None]
        assert sorted(event.index for event in ends) == [0, 1]
        assert {(event.finish_reason, event.error.code) for event in ends if event.error} == {("error", "engine_dead")}
    assert engine.state == "restarting"
    await eventually(lambda: engine.state == "ready")
    assert engine.pid != pid
    assert tokens_of(await collect(engine.generate(request()))) == expected_tokens([1, 2, 3], 20, eos=None)


async def test_a_request_that_comes_during_the_restart_waits_for_it(start_engine: StartEngine) -> None:
    engine = await start_engine()
    kill(engine)
    await eventually(lambda: engine.state == "restarting")
    assert tokens_of(await collect(engine.generate(request()))) == expected_tokens([1, 2, 3], 20, eos=None)


async def test_a_request_waits_for_a_restart_no_longer_than_it_may(start_engine: StartEngine) -> None:
    engine = await start_engine(load_seconds=1.0, restart_wait_s=0.05)
    kill(engine)
    await eventually(lambda: engine.state == "restarting")
    (event,) = await collect(engine.generate(request()))
    assert event.finish_reason == "error"
    assert event.error is not None
    assert event.error.code == "engine_dead"


async def test_a_deadline_also_counts_while_the_engine_is_away(start_engine: StartEngine) -> None:
    engine = await start_engine(load_seconds=1.0)
    kill(engine)
    await eventually(lambda: engine.state == "restarting")
    asked = Request("r", [1, 2, 3], SamplingParams(), deadline_s=0.05)
    (event,) = await collect(engine.generate(asked))
    assert event.finish_reason == "deadline"


async def test_the_engine_is_started_again_until_it_loads(start_engine: StartEngine, tmp_path: Path) -> None:
    fixed = tmp_path / "fixed"
    fixed.touch()
    engine = await start_engine(error="checkpoint", error_until=str(fixed))
    fixed.unlink()
    kill(engine)
    await eventually(lambda: engine.state == "restarting")
    await asyncio.sleep(1.0)  # some starts fail
    assert engine.state == "restarting"
    fixed.touch()
    await eventually(lambda: engine.state == "ready")
    await collect(engine.generate(request()))


async def test_it_survives_being_killed_again_and_again(start_engine: StartEngine) -> None:
    engine = await start_engine()
    for _ in range(3):
        kill(engine)
        await eventually(lambda: engine.state == "restarting")
        await eventually(lambda: engine.state == "ready")
    assert tokens_of(await collect(engine.generate(request()))) == expected_tokens([1, 2, 3], 20, eos=None)


@pytest.mark.parametrize(
    ("error", "expected", "said"),
    [
        ("checkpoint", CheckpointError, "cut off. Fetch it again."),
        ("config", ConfigError, "900 threads"),
        ("memory", MemoryError, "8 GiB are missing"),
        ("bug", EngineDeadError, "KeyError: 'oops'"),
    ],
)
async def test_an_error_of_loading_arrives_as_what_it_was(
    start_engine: StartEngine, error: str, expected: type[Exception], said: str
) -> None:
    with pytest.raises(expected, match=said):
        await start_engine(error=error)


async def test_a_process_that_ends_without_a_word_is_an_error_too(tmp_path: Path) -> None:
    from millpond.config.load import make_config

    config = make_config({"model.path": write_fake_model(tmp_path)})
    with pytest.raises(EngineDeadError, match="exit status 3"):
        await AsyncEngine.start(config, command=(sys.executable, "-c", "import sys; sys.exit(3)"))


async def test_loading_tells_how_far_it_is(start_engine: StartEngine) -> None:
    told: list[tuple[str, float]] = []
    await start_engine(on_progress=lambda stage, fraction: told.append((stage, fraction)))
    assert told == [("weights", 0.5), ("weights", 1.0)]


async def test_signals_meant_for_the_gateway_do_not_end_the_engine(start_engine: StartEngine) -> None:
    engine = await start_engine(step_seconds=0.005)
    stream = engine.generate(request(max_tokens=100))
    await anext(stream)
    kill(engine, signal.SIGINT)
    kill(engine, signal.SIGTERM)
    assert (await collect(stream))[-1].finish_reason == "length"


async def test_closing_ends_the_process_and_the_running_requests(start_engine: StartEngine) -> None:
    engine = await start_engine(step_seconds=0.005)
    stream = engine.generate(request(max_tokens=200))
    await anext(stream)
    pid = engine.pid
    await engine.close()
    assert (await collect(stream))[-1].error is not None
    assert pid is not None
    assert not Path(f"/proc/{pid}").exists()
    with pytest.raises(EngineDeadError):
        engine.generate(request())


async def test_a_drain_lets_the_running_requests_finish_and_takes_no_more(start_engine: StartEngine) -> None:
    engine = await start_engine(step_seconds=0.005)
    stream = engine.generate(request())
    await anext(stream)
    draining = asyncio.create_task(engine.drain(20))
    await asyncio.sleep(0)
    with pytest.raises(EngineDeadError):
        engine.generate(request(2))
    await draining
    assert (await collect(stream))[-1].finish_reason == "length"


async def test_a_drain_that_takes_too_long_cancels_what_is_left(start_engine: StartEngine) -> None:
    engine = await start_engine(step_seconds=0.01)
    stream = engine.generate(request(max_tokens=240))
    await engine.drain(0.1)
    last = (await collect(stream))[-1]
    assert last.finish_reason == "cancelled"
    assert last.error is not None
    assert last.error.code == "cancelled"
    await eventually(lambda: engine.stats.num_running == 0)


def test_the_engine_dies_with_its_gateway(tmp_path: Path) -> None:
    gateway = f"""
import asyncio, os, signal, sys
sys.path[:0] = [{str(ROOT / "src")!r}, {str(ROOT)!r}]
from millpond.config.load import make_config
from millpond.inference.engine.client import AsyncEngine

async def main():
    config = make_config({{"model.path": {write_fake_model(tmp_path)!r}}})
    engine = await AsyncEngine.start(config, command={FAKE_ENGINE!r})
    print(engine.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", gateway], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    pid = int(done.stdout)
    asyncio.run(eventually(lambda: not _is_running(pid)))


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_wait_before_a_restart_doubles_up_to_a_limit() -> None:
    policy = RestartPolicy(first_delay_s=0.1, longest_delay_s=5.0)
    assert [policy.delay_s(failures) for failures in (1, 2, 3, 6, 7, 1000)] == [0.1, 0.2, 0.4, 3.2, 5.0, 5.0]
