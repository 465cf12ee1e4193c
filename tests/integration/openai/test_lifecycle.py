"""A server's life: clients that hang up, an engine that is killed, a drain, a second signal."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.openai.conftest import FLAGS
from tests.support.server_process import ServerProcess

LONG: dict[str, Any] = {"model": "tiny", "prompt": "The mill", "max_tokens": 1400, "extra_body": {"ignore_eos": True}}
PATIENCE_S = 20


def metric(url: str, name: str) -> float:
    page = httpx2.get(f"{url}/metrics", timeout=60).text
    return sum(
        sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == name
    )


def wait_until(is_true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not is_true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def own_server(checkpoint: Path, request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    with ServerProcess(checkpoint, *FLAGS, *getattr(request, "param", ())) as server:
        yield server.wait_ready()


def client_of(server: ServerProcess) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_a_client_that_hangs_up_frees_its_sequences_and_blocks(client: OpenAI, server: ServerProcess) -> None:
    free_before = metric(server.url, "millpond_cache_free_blocks")
    stream = client.completions.create(**LONG, n=8, stream=True)
    next(iter(stream))
    stream.close()
    wait_until(lambda: metric(server.url, "millpond_http_open_requests") == 0)
    client.completions.create(model="tiny", prompt="a", max_tokens=1)  # a step, so that the numbers are of now
    wait_until(lambda: metric(server.url, "millpond_scheduler_running_sequences") == 0)
    assert metric(server.url, "millpond_cache_free_blocks") == free_before
    assert metric(server.url, "millpond_request_finished_total") > 0


def test_the_url_is_the_only_line_on_stdout(server: ServerProcess) -> None:
    assert server.lines == [f"Millpond is serving tiny at {server.url}\n"]


def test_a_killed_engine_fails_its_requests_alone_and_comes_back(client: OpenAI, server: ServerProcess) -> None:
    stream = client.completions.create(**LONG, stream=True)
    next(iter(stream))
    (engine,) = server.children()
    os.kill(engine, signal.SIGKILL)
    with pytest.raises(openai.APIError, match="engine process ended"):
        list(stream)
    assert httpx2.get(f"{server.url}/health", timeout=60).status_code == 200
    ignoring = {"ignore_eos": True}  # it is drawn, and may be the first token
    reply = client.completions.create(model="tiny", prompt="The mill", max_tokens=3, extra_body=ignoring)
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 3
    assert server.children() != [engine]


def test_a_drain_finishes_what_runs_and_takes_nothing_new(own_server: ServerProcess) -> None:
    with client_of(own_server) as client:
        stream = client.completions.create(**LONG | {"max_tokens": 600}, n=4, stream=True)
        chunks = [next(iter(stream))]
        own_server.signal(signal.SIGTERM)
        ready = f"{own_server.url}/ready"
        wait_until(lambda: httpx2.get(ready, timeout=60).status_code == 503)
        assert httpx2.get(ready, timeout=60).json()["status"] == "draining"
        with pytest.raises(openai.InternalServerError) as caught:
            client.completions.create(model="tiny", prompt="a", max_tokens=1)
        assert caught.value.status_code == 503
        assert caught.value.response.headers["retry-after"]
        chunks += list(stream)
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason]
    assert reasons == ["length"] * 4
    assert own_server.wait() == 0


@pytest.mark.parametrize("own_server", [("--serve.drain_timeout_s", "0.2")], indirect=True)
def test_what_has_not_finished_when_the_drains_time_is_up_is_told_so(own_server: ServerProcess) -> None:
    with client_of(own_server) as client:
        stream = client.completions.create(**LONG, n=32, stream=True)
        next(iter(stream))
        own_server.signal(signal.SIGTERM)
        with pytest.raises(openai.APIError, match="shutting down"):
            list(stream)
    assert own_server.wait() == 0


def test_a_second_signal_does_not_wait(own_server: ServerProcess) -> None:
    with client_of(own_server) as client:
        stream = client.completions.create(**LONG, n=32, stream=True)
        next(iter(stream))
        (engine,) = own_server.children()
        own_server.signal(signal.SIGTERM)
        wait_until(lambda: httpx2.get(f"{own_server.url}/ready", timeout=60).status_code == 503)
        own_server.signal(signal.SIGTERM)
        assert own_server.wait() == 128 + signal.SIGTERM
        wait_until(lambda: not Path(f"/proc/{engine}/cmdline").exists() or not is_running(engine))
        with pytest.raises(openai.APIConnectionError):
            list(stream)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[-1].split()[0] != "Z"
    except OSError:
        return False


def test_a_checkpoint_that_cannot_be_loaded_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with ServerProcess(tmp_path) as server:
        assert server.wait() == 1
        errors = "".join(server.errors)
    assert "Traceback" not in errors
    assert str(tmp_path) in errors
