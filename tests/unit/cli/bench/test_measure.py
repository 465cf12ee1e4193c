from __future__ import annotations

import numpy as np
import pytest

from millpond.cli.bench.measure import Trace, make_report, percentile, spread


def trace(start: float, *arrivals: tuple[float, int], error: str | None = None) -> Trace:
    tokens = sum(count for _, count in arrivals)
    end = arrivals[-1][0] if arrivals else start
    return Trace(start, list(arrivals), end, prompt_tokens=10, output_tokens=tokens, error=error)


@pytest.mark.parametrize("percent", [0, 50, 90, 99, 100])
def test_percentiles_are_numpys(percent: int) -> None:
    values = sorted(np.random.default_rng(0).exponential(size=101).tolist())
    assert percentile(values, percent) == pytest.approx(float(np.percentile(values, percent)))


def test_no_values_have_no_spread() -> None:
    assert spread([]) is None


def test_first_token_counts_from_sending() -> None:
    assert trace(2.0, (2.5, 1)).ttft_s == 0.5


def test_tokens_that_come_together_share_the_time() -> None:
    assert trace(0.0, (1.0, 1), (1.3, 1), (1.9, 3)).inter_token_s == pytest.approx([0.3, 0.2, 0.2, 0.2])


def test_rates_are_over_the_whole_run() -> None:
    report = make_report("x", 2, [trace(0.0, (1.0, 1), (2.0, 1)), trace(1.0, (2.0, 1), (4.0, 5))])
    assert (report.wall_s, report.output_tokens, report.output_tokens_per_s) == (4.0, 8, 2.0)
    assert (report.prompt_tokens_per_s, report.requests_per_s) == (5.0, 0.5)


def test_a_failed_request_counts_only_as_failed() -> None:
    report = make_report("x", 1, [trace(0.0, (1.0, 4)), trace(0.0, (9.0, 4), error="gone")])
    assert (report.requests, report.failed, report.first_error) == (2, 1, "gone")
    assert (report.wall_s, report.output_tokens) == (1.0, 4)


def test_an_answer_without_tokens_is_a_failure() -> None:
    report = make_report("x", 1, [trace(0.0)])
    assert (report.failed, report.ttft_s) == (1, None)
