"""`ServableStatistics`: what one version of a servable has done since it was loaded.

The counters are those of the Open Inference Protocol's statistics extension. Changed only on the event loop's thread,
by the servable and its replicas; protocols read them and never write.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from millpond.serve.servables.backend import ExecutionTiming
from millpond.serve.servables.messages import InferResponse

_MOST_RESPONSES = 1000  # of one request that are counted each for itself

FailureReason = Literal["REJECTED", "CANCELED", "BACKEND", "OTHER"]


@dataclass(slots=True)
class Durations:
    """How often something happened and how many nanoseconds it took in all."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        """Counts one more."""
        self.count += 1
        self.ns += ns


@dataclass(slots=True)
class BatchStatistics:
    """Executions of one batch size."""

    compute_input: Durations = field(default_factory=Durations)
    compute_infer: Durations = field(default_factory=Durations)
    compute_output: Durations = field(default_factory=Durations)


@dataclass(slots=True)
class ResponseStatistics:
    """The n-th responses of a decoupled servable's requests."""

    compute_infer: Durations = field(default_factory=Durations)
    compute_output: Durations = field(default_factory=Durations)
    success: Durations = field(default_factory=Durations)
    fail: Durations = field(default_factory=Durations)
    empty_response: Durations = field(default_factory=Durations)
    cancel: Durations = field(default_factory=Durations)


@dataclass(slots=True)
class ServableStatistics:
    """Counters of one version.

    Attributes:
        last_inference_ms: Since the epoch; 0 is never.
        inference_count: Batch rows that were answered by an execution, so without cache hits.
        execution_count: Merged executions.
        success, fail: Requests and their whole time in the server.
        queue, compute_input, compute_infer, compute_output: Of successful requests; each request of a batch counts
            the batch's whole time.
        responses: By index of the response; decoupled servables only.
        batches: By batch size.
        failures: Requests that failed, by reason.
        count_pending: Asks the servable for `pending`.
    """

    name: str
    version: int
    last_inference_ms: int = 0
    inference_count: int = 0
    execution_count: int = 0
    success: Durations = field(default_factory=Durations)
    fail: Durations = field(default_factory=Durations)
    queue: Durations = field(default_factory=Durations)
    compute_input: Durations = field(default_factory=Durations)
    compute_infer: Durations = field(default_factory=Durations)
    compute_output: Durations = field(default_factory=Durations)
    cache_hit: Durations = field(default_factory=Durations)
    cache_miss: Durations = field(default_factory=Durations)
    responses: dict[int, ResponseStatistics] = field(default_factory=dict)
    batches: dict[int, BatchStatistics] = field(default_factory=dict)
    failures: dict[FailureReason, int] = field(
        default_factory=lambda: {"REJECTED": 0, "CANCELED": 0, "BACKEND": 0, "OTHER": 0}
    )
    count_pending: Callable[[], int] = field(default=int, repr=False, compare=False)

    @property
    def pending(self) -> int:
        """Requests that wait for an execution now."""
        return self.count_pending()

    def add_execution(self, rows: int, timing: ExecutionTiming) -> None:
        """Counts one execution of a batch of `rows`."""
        self.execution_count += 1
        batch = self.batches.get(rows)
        if batch is None:
            batch = self.batches[rows] = BatchStatistics()
        _add_phases(batch, timing)

    def add_success(self, rows: int, total_ns: int, queue_ns: int, timing: ExecutionTiming, count: int = 1) -> None:
        """Counts requests that an execution answered; rows and times are those of all together."""
        self.last_inference_ms = time.time_ns() // 1_000_000
        self.inference_count += rows
        success, queue = self.success, self.queue
        success.count += count
        success.ns += total_ns
        queue.count += count
        queue.ns += queue_ns
        _add_phases(self, timing, count)

    def add_hit(self, total_ns: int, lookup_ns: int) -> None:
        """Counts a request that the cache answered."""
        self.last_inference_ms = time.time_ns() // 1_000_000
        self.success.add(total_ns)
        self.queue.add(0)
        self.cache_hit.add(lookup_ns)

    def add_failure(self, total_ns: int, reason: FailureReason) -> None:
        """Counts a request that ended without its outputs."""
        self.last_inference_ms = time.time_ns() // 1_000_000
        self.fail.add(total_ns)
        self.failures[reason] += 1

    def add_response(self, index: int, since_ns: int, response: InferResponse, *, was_cancelled: bool) -> None:
        """Counts the n-th response of a decoupled servable's request, so many nanoseconds after the one before it."""
        if index >= _MOST_RESPONSES:
            return
        found = self.responses.get(index)
        if found is None:
            found = self.responses[index] = ResponseStatistics()
        if was_cancelled:
            found.cancel.add(since_ns)
        elif response.error is not None:
            found.fail.add(since_ns)
        elif not response.outputs:
            found.empty_response.add(since_ns)
        else:
            found.success.add(since_ns)
            found.compute_infer.add(since_ns)
            found.compute_output.add(0)


def _add_phases(counters: BatchStatistics | ServableStatistics, timing: ExecutionTiming, count: int = 1) -> None:
    """Counts the phases of an execution; written out, because every batch comes here twice."""
    phase = counters.compute_input
    phase.count += count
    phase.ns += timing.compute_input_ns * count
    phase = counters.compute_infer
    phase.count += count
    phase.ns += timing.compute_infer_ns * count
    phase = counters.compute_output
    phase.count += count
    phase.ns += timing.compute_output_ns * count
