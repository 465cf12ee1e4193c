"""What a benchmark counts: one trace a request, and the report over all of them. Pure; times are handed in.

Time to first token runs from sending the request to its first token here. Inter-token latency is the time from one
arrival to the next, shared by the tokens that came together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

PERCENTILES = (50, 90, 99)


@dataclass(slots=True)
class Trace:
    """One request as its client saw it. `arrivals` holds (time, tokens that came then)."""

    start_s: float
    arrivals: list[tuple[float, int]] = field(default_factory=list)
    end_s: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    error: str | None = None

    @property
    def ttft_s(self) -> float:
        return self.arrivals[0][0] - self.start_s

    @property
    def inter_token_s(self) -> list[float]:
        gaps = []
        for (before, _), (after, tokens) in zip(self.arrivals, self.arrivals[1:], strict=False):
            gaps += [(after - before) / tokens] * tokens
        return gaps


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and percentiles of one quantity."""

    mean: float
    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, slots=True)
class Report:
    """The result of one benchmark. Times in seconds, rates a second over the whole run; None: nothing to measure."""

    target: str
    concurrency: int
    requests: int
    failed: int
    first_error: str | None
    wall_s: float
    prompt_tokens: int
    output_tokens: int
    requests_per_s: float
    prompt_tokens_per_s: float
    output_tokens_per_s: float
    ttft_s: Spread | None
    inter_token_s: Spread | None
    request_s: Spread | None


def make_report(target: str, concurrency: int, traces: Sequence[Trace]) -> Report:
    """Sums up the traces of a run. A failed request counts in `failed` and in nothing else."""
    done = [trace for trace in traces if trace.error is None and trace.arrivals]
    errors = [trace.error or "the answer held no tokens" for trace in traces if trace not in done]
    wall = max((t.end_s for t in done), default=0.0) - min((t.start_s for t in done), default=0.0)
    prompt_tokens = sum(trace.prompt_tokens for trace in done)
    output_tokens = sum(trace.output_tokens for trace in done)
    rate = 1 / wall if wall > 0 else 0.0
    return Report(
        target=target,
        concurrency=concurrency,
        requests=len(traces),
        failed=len(errors),
        first_error=errors[0] if errors else None,
        wall_s=wall,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        requests_per_s=len(done) * rate,
        prompt_tokens_per_s=prompt_tokens * rate,
        output_tokens_per_s=output_tokens * rate,
        ttft_s=spread([trace.ttft_s for trace in done]),
        inter_token_s=spread([gap for trace in done for gap in trace.inter_token_s]),
        request_s=spread([trace.end_s - trace.start_s for trace in done]),
    )


def spread(values: Sequence[float]) -> Spread | None:
    """Returns mean and percentiles, or None for no values."""
    if not values:
        return None
    ordered = sorted(values)
    return Spread(sum(ordered) / len(ordered), *(percentile(ordered, p) for p in PERCENTILES))


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Returns a percentile of sorted values, linear between neighbours."""
    place = (len(ordered) - 1) * percent / 100
    low, high = math.floor(place), math.ceil(place)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
