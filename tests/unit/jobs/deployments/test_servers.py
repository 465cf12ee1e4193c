from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from millpond.jobs.deployments.servers import GAUGES, read_gauges
from millpond.serve.metrics import ServeMetrics


def test_gauges_of_another_library_are_read() -> None:
    registry = CollectorRegistry()
    Gauge("vllm:num_requests_waiting", "Waiting.", ["model"], registry=registry).labels('a"} 7').set(3)
    gauge = Gauge("shards", "By shard.", ["shard"], registry=registry)
    gauge.labels("0").set(1.5)
    gauge.labels("1").set(2e-3)
    Counter("other", "Not asked for.", registry=registry).inc()
    page = generate_latest(registry).decode()
    assert read_gauges(page, ["shards", "missing"]) == {"shards": 1.502}
    assert read_gauges(page, ["vllm:num_requests_waiting"]) == {"vllm:num_requests_waiting": 3.0}


def test_targets_name_gauges_that_our_servers_have() -> None:
    names = {metric.name for metric in ServeMetrics().all()}
    assert set(GAUGES.values()) <= names


def test_a_page_that_is_no_page_says_nothing() -> None:
    assert read_gauges("<html>millpond_cache_usage_ratio</html>\n\0\n", ["kv"]) == {}


def test_what_is_no_finite_number_is_left_out() -> None:
    page = 'depth{a="1"} +Inf\ndepth{a="2"} 2\ndepth{a="3"} NaN\ndepth{a="4"} 1e\ndepth{a="5"} --3\n'
    assert read_gauges(page, ["depth"]) == {"depth": 2.0}
