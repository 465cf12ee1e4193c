from __future__ import annotations

import pytest

from millpond.base.units import format_bytes, format_seconds, parse_bytes


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1 apple", "1e3", "nan"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (96_000_000, "91.6 MiB"), (5 << 40, "5.0 TiB")]
)
def test_sizes_are_written_in_a_fitting_unit(size: int, text: str) -> None:
    assert format_bytes(size) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.0032, "3.2 ms"), (0.85, "0.85 s"), (125, "2 min 5 s")])
def test_times_are_written_in_a_fitting_unit(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
