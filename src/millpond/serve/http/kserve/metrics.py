"""The metrics port: Prometheus text with Triton's names, made from the registry's counters when it is asked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from millpond.serve.http.kserve.errors import error_body
from millpond.serve.http.kserve.exchange import Exchange
from millpond.serve.http.kserve.limits import HttpLimits
from millpond.serve.http.kserve.port import HttpPort
from millpond.serve.kserve.model_metrics import ModelMetrics, escape
from millpond.serve.kserve.server import KServe
from millpond.serve.servables.statistics import ServableStatistics

_CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
_MAX_BODY = 1 << 16
Read = Callable[[ServableStatistics], float]


def _us(name: str) -> Read:
    return lambda stats: getattr(stats, name).ns // 1000


_COUNTERS: tuple[tuple[str, str, Read], ...] = (
    (
        "nv_inference_request_success",
        "Number of successful inference requests, all batch sizes",
        lambda stats: stats.success.count,
    ),
    (
        "nv_inference_count",
        "Number of inferences performed (does not include cached requests)",
        lambda stats: stats.inference_count,
    ),
    (
        "nv_inference_exec_count",
        "Number of model executions performed (does not include cached requests)",
        lambda stats: stats.execution_count,
    ),
    (
        "nv_inference_request_duration_us",
        "Cumulative inference request duration in microseconds (includes cached requests)",
        lambda stats: (stats.success.ns + stats.fail.ns) // 1000,
    ),
    (
        "nv_inference_queue_duration_us",
        "Cumulative inference queuing duration in microseconds (includes cached requests)",
        _us("queue"),
    ),
    (
        "nv_inference_compute_input_duration_us",
        "Cumulative compute input duration in microseconds (does not include cached requests)",
        _us("compute_input"),
    ),
    (
        "nv_inference_compute_infer_duration_us",
        "Cumulative compute inference duration in microseconds (does not include cached requests)",
        _us("compute_infer"),
    ),
    (
        "nv_inference_compute_output_duration_us",
        "Cumulative inference compute output duration in microseconds (does not include cached requests)",
        _us("compute_output"),
    ),
    ("nv_cache_num_hits_per_model", "Number of cache hits per model", lambda stats: stats.cache_hit.count),
    ("nv_cache_num_misses_per_model", "Number of cache misses per model", lambda stats: stats.cache_miss.count),
    ("nv_cache_hit_duration_per_model", "Total cache hit duration per model, in microseconds", _us("cache_hit")),
    ("nv_cache_miss_duration_per_model", "Total cache miss duration per model, in microseconds", _us("cache_miss")),
)


def make_metrics_port(server: KServe, port: int) -> HttpPort:
    """Returns the port that answers `/metrics`; 0 picks a free one."""

    def handle(exchange: Exchange) -> None:
        if exchange.request.path != "/metrics":
            exchange.respond(404, [error_body("Not Found")])
        elif exchange.request.method not in ("GET", "HEAD"):
            exchange.respond(405, [error_body("Method Not Allowed")])
        else:
            exchange.respond(200, [metrics_text(server, server.published)], _CONTENT_TYPE)

    limits = HttpLimits(handle, error_body, _MAX_BODY)
    return HttpPort("Triton metrics", server.settings.host, port, limits=limits, param="triton.metrics_port")


def metrics_text(server: KServe, published: ModelMetrics) -> bytes:
    """Returns the page."""
    statistics = server.servables.statistics()
    lines: list[str] = []
    for name, text, read in _COUNTERS:
        lines += _family(name, text, "counter", ((_labels(stats), read(stats)) for stats in statistics))
    lines += _family(
        "nv_inference_request_failure",
        "Number of failed inference requests, all batch sizes",
        "counter",
        (
            (_labels(stats, reason=reason), count)
            for stats in statistics
            for reason, count in sorted(stats.failures.items())
        ),
    )
    lines += _family(
        "nv_inference_pending_request_count",
        "Instantaneous number of pending requests awaiting execution per-model.",
        "gauge",
        ((_labels(stats), stats.pending) for stats in statistics),
    )
    lines += _machine()
    lines += published.lines()
    return ("\n".join(lines) + "\n").encode()


def _family(name: str, text: str, kind: str, samples: Iterable[tuple[str, float]]) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
    for labels, value in samples:
        yield f"{name}{labels} {value}"


def _labels(stats: ServableStatistics, **more: str) -> str:
    pairs = {"model": stats.name, "version": str(stats.version), **more}
    return "{" + ",".join(f'{name}="{escape(value)}"' for name, value in pairs.items()) + "}"


def _machine() -> Iterator[str]:
    total, used = _memory()
    load = min(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    yield from _family("nv_cpu_utilization", "CPU utilization rate [0.0 - 1.0]", "gauge", [("", load)])
    yield from _family("nv_cpu_memory_total_bytes", "CPU total memory (RAM), in bytes", "gauge", [("", total)])
    yield from _family("nv_cpu_memory_used_bytes", "CPU used memory (RAM), in bytes", "gauge", [("", used)])


def _memory() -> tuple[int, int]:
    try:
        words = [line.split() for line in Path("/proc/meminfo").read_text().splitlines()]
        sizes = {word[0].rstrip(":"): int(word[1]) * 1024 for word in words if len(word) > 1}
        return sizes["MemTotal"], sizes["MemTotal"] - sizes["MemAvailable"]
    except (OSError, KeyError, ValueError):
        return 0, 0
