"""What the gateway counts, and the page at /metrics.

Owns every metric's name, help and buckets (the reference page is generated from `metric_table`). Engine numbers are not
kept here: they are copied from the engine's last `EngineStats` when the page is read. Fed by `http/edge.py` (status
codes) and `generation.py` (times and tokens of requests).
"""

from __future__ import annotations

from millpond.api.request import EngineInfo, EngineStats
from millpond.serve.prometheus import Histogram, Metric, render

_LATENCY_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)
_DURATION_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)


class ServeMetrics:
    """The metrics of one gateway."""

    def __init__(self) -> None:
        self.http_requests = Metric(
            "counter", "millpond_http_requests_total", "HTTP responses by route and status.", ("route", "status")
        )
        self.open_requests = Metric("gauge", "millpond_http_open_requests", "Generation requests being answered now.")
        self.finished = Metric(
            "counter", "millpond_request_finished_total", "Sequences that ended, by finish reason.", ("reason",)
        )
        self.prompt_tokens = Metric("counter", "millpond_request_prompt_tokens_total", "Prompt tokens of requests.")
        self.output_tokens = Metric("counter", "millpond_request_output_tokens_total", "Tokens given to clients.")
        self.first_token = Histogram(
            "millpond_request_time_to_first_token_seconds", "From a request's arrival to its first token.", _LATENCY_S
        )
        self.inter_token = Histogram(
            "millpond_request_inter_token_latency_seconds", "Between a sequence's tokens after the first.", _TOKEN_S
        )
        self.duration = Histogram(
            "millpond_request_duration_seconds", "From a request's arrival to the end of its answer.", _DURATION_S
        )
        self.queue = Histogram(
            "millpond_request_queue_seconds", "From a sequence's admission to its first step.", _LATENCY_S
        )
        self._engine = EngineMetrics()

    def page(self, info: EngineInfo | None, stats: EngineStats | None, ready: bool) -> str:
        """Returns the Prometheus text, with the engine's numbers as of now."""
        self._engine.copy(info, stats, ready)
        return render(self.all())

    def all(self) -> list[Metric | Histogram]:
        """Returns every metric in the order of the page."""
        own = [value for value in vars(self).values() if isinstance(value, Metric | Histogram)]
        return [*own, *self._engine.gauges.values(), self._engine.ready, self._engine.info, self._engine.usage]


class EngineMetrics:
    """The engine's side of the page: one metric per field of `EngineStats`, plus what the engine is."""

    def __init__(self) -> None:
        self.gauges = {
            field: Metric("counter" if name.endswith("_total") else "gauge", name, text)
            for field, name, text in (
                ("num_running", "millpond_scheduler_running_sequences", "Sequences in the current batch."),
                ("num_waiting", "millpond_scheduler_waiting_sequences", "Sequences in the queue."),
                ("preemptions_total", "millpond_scheduler_preemptions_total", "Sequences put back to make room."),
                ("num_blocks", "millpond_cache_blocks", "Blocks of the KV cache."),
                ("num_free_blocks", "millpond_cache_free_blocks", "Blocks that no sequence holds."),
                ("num_cached_blocks", "millpond_cache_reusable_blocks", "Blocks whose content can be hit."),
                ("prefix_query_tokens_total", "millpond_cache_query_tokens_total", "Prompt tokens looked up."),
                ("prefix_hit_tokens_total", "millpond_cache_hit_tokens_total", "Prompt tokens that were cached."),
                ("steps_total", "millpond_engine_steps_total", "Forward steps."),
                ("prompt_tokens_total", "millpond_engine_prompt_tokens_total", "Prompt tokens computed."),
                ("output_tokens_total", "millpond_engine_output_tokens_total", "Tokens sampled."),
                ("draft_tokens_total", "millpond_speculation_proposed_tokens_total", "Guesses that steps computed."),
                (
                    "accepted_draft_tokens_total",
                    "millpond_speculation_accepted_tokens_total",
                    "Guesses that were right; part of the output tokens.",
                ),
                ("step_seconds_total", "millpond_engine_step_seconds_total", "Time in steps."),
                ("kernel_seconds_total", "millpond_engine_kernel_seconds_total", "Time in kernels, part of the steps."),
            )
        }
        self.usage = Metric("gauge", "millpond_cache_usage_ratio", "Part of the KV cache that sequences hold, 0 to 1.")
        self.ready = Metric("gauge", "millpond_engine_ready_bool", "1 while the engine takes requests.")
        self.info = Metric(
            "gauge", "millpond_engine_info", "What runs; always 1.", ("model", "family", "dtype", "executor", "isa")
        )

    def copy(self, info: EngineInfo | None, stats: EngineStats | None, ready: bool) -> None:
        """Takes the engine's last numbers over."""
        self.ready.set(float(ready))
        if info is not None:
            self.info.set(1.0, info.model, info.family, info.dtype, info.executor, info.isa)
        if stats is None:
            return
        for field, metric in self.gauges.items():
            metric.set(float(getattr(stats, field)))
        used = stats.num_blocks - stats.num_free_blocks
        self.usage.set(used / stats.num_blocks if stats.num_blocks else 0.0)


def metric_table() -> list[tuple[str, str, str, str]]:
    """Returns (name, kind, labels, help) of every metric, for the generated reference page."""
    return [(metric.name, metric.kind, ", ".join(metric.labels), metric.help) for metric in ServeMetrics().all()]
