"""The text format, read back by Prometheus' own parser."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from millpond.serve.metrics import ServeMetrics, metric_table
from millpond.serve.prometheus import MAX_SERIES, Histogram, Metric, render
from tests.support.scripted_engine import ScriptedEngine


def samples(page: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def test_a_counter_is_read_back_with_its_labels() -> None:
    metric = Metric("counter", "millpond_x_total", "Help with \\ and\nline.", ("route", "status"))
    metric.add(2, 'a"b\\c\nd', "200")
    metric.add(1, 'a"b\\c\nd', "200")
    assert samples(render([metric])) == {("millpond_x_total", (("route", 'a"b\\c\nd'), ("status", "200"))): 3.0}


def test_a_metric_without_labels_is_there_before_it_counts() -> None:
    assert samples(render([Metric("gauge", "millpond_x", "Help.")])) == {("millpond_x", ()): 0.0}


def test_labels_past_the_limit_are_counted_together() -> None:
    metric = Metric("counter", "millpond_x_total", "Help.", ("name",))
    for number in range(MAX_SERIES + 50):
        metric.add(1, str(number))
    assert metric.value("other") == 50
    assert len(list(metric.samples())) == MAX_SERIES + 1


@pytest.mark.parametrize(("value", "bucket"), [(0.5, "1"), (1.0, "1"), (1.5, "2"), (9.0, "+Inf")])
def test_an_observation_counts_in_its_bucket_and_all_above(value: float, bucket: str) -> None:
    histogram = Histogram("millpond_x_seconds", "Help.", (1.0, 2.0))
    histogram.observe(value)
    got = samples(render([histogram]))
    bounds = ["1", "2", "+Inf"]
    expected = [float(bounds.index(bound) >= bounds.index(bucket)) for bound in bounds]
    assert [got["millpond_x_seconds_bucket", (("le", bound),)] for bound in bounds] == expected
    assert got["millpond_x_seconds_sum", ()] == value
    assert got["millpond_x_seconds_count", ()] == 1


def test_the_engines_numbers_are_on_the_page(engine: ScriptedEngine) -> None:
    got = samples(ServeMetrics().page(engine.info, engine.stats, ready=True))
    assert got["millpond_scheduler_running_sequences", ()] == 1
    assert got["millpond_scheduler_waiting_sequences", ()] == 2
    assert got["millpond_cache_usage_ratio", ()] == 0.25
    assert got["millpond_engine_ready_bool", ()] == 1


def test_the_page_stands_without_an_engine() -> None:
    got = samples(ServeMetrics().page(None, None, ready=False))
    assert got["millpond_engine_ready_bool", ()] == 0
    assert got["millpond_cache_usage_ratio", ()] == 0


def test_every_metric_has_a_name_of_our_form_and_a_help() -> None:
    for name, kind, _, text in metric_table():
        assert name.startswith("millpond_")
        assert name.endswith("_total") == (kind == "counter")
        assert text.endswith(".")


def test_a_histogram_keeps_its_label_values_apart() -> None:
    histogram = Histogram("wait", "Waiting.", (1.0, 2.0), ("method",))
    histogram.observe(0.5, "prefill")
    histogram.observe(3.0, "decode")
    histogram.observe(1.5, "decode")
    family = next(iter(text_string_to_metric_families(render([histogram]))))
    values = {
        (sample.name, sample.labels["method"], sample.labels.get("le")): sample.value for sample in family.samples
    }
    assert values["wait_bucket", "prefill", "1"] == 1
    assert values["wait_bucket", "decode", "2"] == 1
    assert values["wait_bucket", "decode", "+Inf"] == 2
    assert values["wait_sum", "decode", None] == 4.5


def test_a_histogram_under_a_second_name_has_the_same_numbers() -> None:
    first = Histogram("first", "Help.", (1.0, 2.0), ("way",))
    second = first.under("second", "Other help.")
    first.observe(0.5, "a")
    second.observe(1.5, "b")
    lines = render([first, second]).splitlines()
    half = len(lines) // 2
    assert [line.replace("second", "first").replace("Other help", "Help") for line in lines[half:]] == lines[:half]
    assert 'second_count{way="a"} 1' in lines
    assert 'first_count{way="b"} 1' in lines
