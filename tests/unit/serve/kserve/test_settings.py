"""What clients can read and change beside inference: shared memory, trace and log settings, health, metrics."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from millpond.serve.http.kserve.metrics import metrics_text
from millpond.serve.kserve.log_settings import LOGGER, LogSettings
from millpond.serve.kserve.model_metrics import ModelMetrics
from millpond.serve.kserve.settings import TritonSettings
from millpond.serve.kserve.shared_memory import SharedRegions
from millpond.serve.kserve.trace_settings import TraceSettings
from millpond.serve.servables.errors import ServableError
from tests.unit.serve.kserve.conftest import Serve, echo_body


@pytest.fixture
def shared() -> Iterator[Path]:
    path = Path("/dev/shm") / f"kserve-unit-{os.getpid()}"
    path.write_bytes(bytes(range(64)))
    yield path
    path.unlink()


def test_a_region_is_read_and_written_at_its_place(shared: Path) -> None:
    regions = SharedRegions()
    regions.register("r", f"/{shared.name}", 8, 32)
    assert regions.read("r", 4, 3) == bytes([12, 13, 14])
    regions.write("r", 0, 4, b"ab")
    assert shared.read_bytes()[7:11] == b"\x07ab\x0a"
    assert regions.status(None) == [{"name": "r", "key": f"/{shared.name}", "offset": 8, "byte_size": 32}]
    regions.close()
    with pytest.raises(ServableError, match="Unable to find shared memory region: 'r'"):
        regions.read("r", 0, 1)


def test_nothing_outside_a_region_is_reached(shared: Path) -> None:
    regions = SharedRegions()
    with pytest.raises(ServableError, match="failed to register shared memory region 'r': invalid args"):
        regions.register("r", shared.name, 60, 5)
    regions.register("r", shared.name, 0, 64)
    for offset, size in ((60, 5), (-1, 2), (0, -1), (1 << 62, 1 << 62)):
        with pytest.raises(ServableError, match="Invalid offset"):
            regions.read("r", offset, size)
    with pytest.raises(ServableError, match="should be at least 3 bytes"):
        regions.write("r", 0, 2, b"abc")
    with pytest.raises(ServableError, match="already in manager"):
        regions.register("r", shared.name, 0, 1)
    regions.close()


def test_a_region_that_its_owner_cut_short_is_an_error(shared: Path) -> None:
    regions = SharedRegions()
    regions.register("r", shared.name, 0, 64)
    shared.write_bytes(b"x")
    with pytest.raises(ServableError, match="Invalid offset"):
        regions.read("r", 0, 64)
    with pytest.raises(ServableError, match="Invalid offset"):
        regions.write("r", 0, 64, bytes(64))
    assert shared.stat().st_size == 1
    regions.close()


def test_a_model_has_the_servers_trace_settings_but_for_its_own() -> None:
    traces = TraceSettings(TritonSettings(trace_rate=5))
    traces.update("m", {"trace_level": ["TIMESTAMPS"], "unknown": 1})
    traces.update("", {"trace_count": "9"})
    assert traces.document("m")["trace_level"] == ["TIMESTAMPS"]
    assert (traces.document("m")["trace_count"], traces.document("m")["trace_rate"]) == ("9", "5")
    traces.update("m", {"trace_level": None})
    traces.update("", {"trace_count": None})
    assert traces.document("m") == traces.document("") == TraceSettings(TritonSettings(trace_rate=5)).document("")


@pytest.mark.parametrize(
    "change",
    [
        {"trace_file": "/x"},
        {"trace_level": "LOUD"},
        {"trace_level": ["OFF", "TIMESTAMPS"]},
        {"trace_rate": "x"},
        {"trace_rate": "-1"},
        {"trace_count": "-2"},
        {"log_frequency": 1 << 64},
    ],
)
def test_trace_settings_that_make_no_sense_change_nothing(change: dict[str, object]) -> None:
    traces = TraceSettings(TritonSettings())
    before = traces.document("")
    with pytest.raises(ServableError):
        traces.update("", {"log_frequency": "3", **change})
    assert traces.document("") == before


@pytest.mark.parametrize(
    "change", [{"log_file": "x"}, {"log_info": 1}, {"log_verbose_level": -1}, {"log_format": "XML"}]
)
def test_log_settings_that_make_no_sense_change_nothing(change: dict[str, object]) -> None:
    logs = LogSettings()
    before = logs.document()
    with pytest.raises(ServableError):
        logs.update({"log_error": False, **change})
    assert logs.document() == before


def test_a_log_format_of_null_leaves_it_as_it_is() -> None:
    logs = LogSettings()
    before = logs.document()
    logs.update({"log_format": None, "log_error": True})
    assert logs.document() == {**before, "log_error": True}


def test_log_settings_decide_what_is_logged() -> None:
    logger = logging.getLogger(LOGGER)
    before = logger.level
    try:
        logs = LogSettings()
        logs.update({"log_info": False, "log_warning": False})
        assert logger.level == logging.ERROR
        logs.update({"log_verbose_level": 1})
        assert logger.level == logging.DEBUG
    finally:
        logger.setLevel(before)


@pytest.mark.parametrize(("is_strict", "body"), [(False, b""), (True, b'{"ready":true}')])
async def test_health_is_empty_or_json(serve: Serve, is_strict: bool, body: bytes) -> None:
    served = await serve(is_strict=is_strict)
    reply = await served.ask("GET", "/v2/health/ready")
    assert (reply.status, reply.body) == (200, body)
    served.server.is_draining = True
    assert (await served.ask("GET", "/v2/health/ready")).status == (503 if is_strict else 400)


async def test_metrics_count_requests_failures_and_what_models_publish(serve: Serve) -> None:
    served = await serve()
    for _ in range(3):
        assert (await served.infer(echo_body(1))).status == 200
    published = ModelMetrics()
    for source, value in ((1, 2.0), (2, 3.5)):
        published.publish("mine", "counter", "of a\nmodel", source=source, labels={"a": 'x"y'}, value=value)
    page = metrics_text(served.server, published).decode()
    assert 'nv_inference_request_success{model="echo",version="1"} 3' in page
    assert 'nv_inference_count{model="echo",version="1"} 3' in page
    assert 'nv_inference_request_failure{model="echo",version="1",reason="REJECTED"} 0' in page
    assert 'mine{a="x\\"y"} 5.5' in page
    published.publish("mine", "counter", "", source=1, labels={"a": 'x"y'}, value=None)
    published.publish("mine", "counter", "", source=2, labels={"a": 'x"y'}, value=None)
    assert "mine" not in metrics_text(served.server, published).decode()
