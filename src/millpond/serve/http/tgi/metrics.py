"""What the TGI port counts, under the names TGI's dashboards know.

Owns every metric's name and buckets. A step of our engine mixes prompts and decoding, so what TGI says of batches is
taken from what requests see: `prefill` is a request's way to its first token, `decode` the steps after it. The engine's
own numbers are copied when the page is read.
"""

from __future__ import annotations

from millpond.api.request import EngineStats
from millpond.serve.prometheus import Histogram, Metric, render

_SECONDS = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_TOKENS = (1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0)
_SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
_METHODS = ("prefill", "decode")


class TgiMetrics:
    """The metrics of one TGI port."""

    def __init__(self) -> None:
        self.requests = Metric("counter", "tgi_request_count", "Requests that came in.")
        self.successes = Metric("counter", "tgi_request_success", "Requests that were answered.")
        self.failures = Metric("counter", "tgi_request_failure", "Requests that failed, by kind.", ("err",))
        self.duration = Histogram("tgi_request_duration", "From arrival to the end, seconds.", _SECONDS)
        self.validation = Histogram("tgi_request_validation_duration", "Validating, seconds.", _SECONDS)
        self.queue = Histogram("tgi_request_queue_duration", "Waiting for the first step, seconds.", _SECONDS)
        self.inference = Histogram("tgi_request_inference_duration", "From the first step to the end.", _SECONDS)
        self.per_token = Histogram("tgi_request_mean_time_per_token_duration", "Seconds for a token.", _SECONDS)
        self.generated = Histogram("tgi_request_generated_tokens", "Tokens of an answer.", _TOKENS)
        self.input_length = Histogram("tgi_request_input_length", "Tokens of a prompt.", _TOKENS)
        self.max_new_tokens = Histogram("tgi_request_max_new_tokens", "Tokens asked for.", _TOKENS)
        self.skipped = Histogram("tgi_request_skipped_tokens", "Tokens guessed right by speculation.", _TOKENS)
        self.batches = Metric("counter", "tgi_batch_inference_count", "Steps.", ("method",))
        self.batch_successes = Metric("counter", "tgi_batch_inference_success", "Steps that worked.", ("method",))
        self.batch_failures = Metric(
            "counter", "tgi_batch_inference_failure", "Steps that failed.", ("method", "reason")
        )
        self.concats = Metric("counter", "tgi_batch_concat", "Batches that were joined.", ("reason",))
        self.batch_duration = Histogram("tgi_batch_inference_duration", "Seconds of a step.", _SECONDS, ("method",))
        self.forward = self.batch_duration.under("tgi_batch_forward_duration", "Seconds of its forward pass.")
        self.decode = Histogram("tgi_batch_decode_duration", "Seconds of its decoding to text.", _SECONDS, ("method",))
        self.filter = Histogram("tgi_batch_filter_duration", "Seconds of filtering a batch.", _SECONDS, ("method",))
        self.concat = Histogram("tgi_batch_concat_duration", "Seconds of joining batches.", _SECONDS, ("method",))
        self.next_size = Histogram("tgi_batch_next_size", "Requests that began together.", _SIZES)
        self.queue_size = Metric("gauge", "tgi_queue_size", "Requests waiting.")
        self.batch_size = Metric("gauge", "tgi_batch_current_size", "Requests in the batch.")
        self.batch_tokens = Metric("gauge", "tgi_batch_current_max_tokens", "Tokens the batch holds in the cache.")
        self.batch_max = Metric("gauge", "tgi_batch_max_total_tokens", "Tokens the cache holds.")

    def count_failure(self, kind: str) -> None:
        """Counts a request that failed, by TGI's word for the reason."""
        words = {"incomplete_generation": "incomplete", "template_error": "template error", "healthcheck": "dropped"}
        self.failures.add(1.0, words.get(kind, kind))

    def page(self, stats: EngineStats | None, block_size: int) -> str:
        """Returns the Prometheus text, with the engine's numbers as of now."""
        if stats is not None:
            self.queue_size.set(float(stats.num_waiting))
            self.batch_size.set(float(stats.num_running))
            self.batch_tokens.set(float((stats.num_blocks - stats.num_free_blocks) * block_size))
            self.batch_max.set(float(stats.num_blocks * block_size))
            self.batches.set(float(stats.steps_total), "decode")
            self.batch_successes.set(float(stats.steps_total), "decode")
        return render(self.all())

    def all(self) -> list[Metric | Histogram]:
        """Returns every metric in the order of the page."""
        return [value for value in vars(self).values() if isinstance(value, Metric | Histogram)]

    def observe_step(self, method: str, seconds: float) -> None:
        """Takes in how long a request waited for its first token (prefill) or for a further one (decode)."""
        assert method in _METHODS
        self.batch_duration.observe(seconds, method)
        if method == "prefill":
            self.batches.add(1.0, method)
            self.batch_successes.add(1.0, method)
