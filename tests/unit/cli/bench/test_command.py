from __future__ import annotations

from millpond.cli.bench.command import as_lines
from millpond.cli.bench.measure import Report, Spread


def make_report(**changes: object) -> Report:
    values: dict[str, object] = {
        "target": "tiny",
        "concurrency": 4,
        "requests": 10,
        "failed": 0,
        "first_error": None,
        "wall_s": 2.0,
        "prompt_tokens": 100,
        "output_tokens": 50,
        "requests_per_s": 5.0,
        "prompt_tokens_per_s": 50.0,
        "output_tokens_per_s": 25.0,
        "ttft_s": Spread(0.010, 0.009, 0.020, 0.030),
        "inter_token_s": None,
        "request_s": Spread(1.0, 1.0, 1.5, 2.0),
    }
    return Report(**{**values, **changes})  # type: ignore[arg-type]


def test_times_to_tokens_are_milliseconds() -> None:
    assert "first token, ms          10.00      9.00     20.00     30.00" in as_lines(make_report())


def test_what_was_not_measured_is_a_dash() -> None:
    assert "between tokens, ms           -         -         -         -" in as_lines(make_report())


def test_failures_are_told_with_the_first_reason() -> None:
    assert as_lines(make_report(failed=2, first_error="gone"))[-1] == "2 requests failed; the first: gone"
