from __future__ import annotations

import pytest

from millpond.api.job import SpecError
from millpond.jobs.quantities import is_device, read_duration, read_memory, read_quantity
from millpond.jobs.spec_document import Reader


@pytest.mark.parametrize(
    ("value", "expected"),
    [(2, 2.0), (0.5, 0.5), ("500m", 0.5), ("2", 2.0), ("1.5", 1.5), ("4k", 4000.0), ("1e3", 1000.0)],
)
def test_amounts_as_kubernetes_writes_them(value: str | float, expected: float) -> None:
    assert read_quantity(Reader(value, "cpu"), 1e9) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [("1Gi", 1 << 30), ("512Mi", 512 << 20), ("1G", 10**9), (1024, 1024), ("4GiB", 4 << 30), ("1.5GiB", 3 << 29)],
)
def test_memory(value: str | int, expected: int) -> None:
    assert read_memory(Reader(value, "memory")) == expected


@pytest.mark.parametrize(
    ("value", "expected"), [(90, 90.0), ("90", 90.0), ("90s", 90.0), ("1h30m", 5400.0), ("2d", 172_800.0), (0.5, 0.5)]
)
def test_durations(value: str | float, expected: float) -> None:
    assert read_duration(Reader(value, "ttl")) == expected


@pytest.mark.parametrize("value", ["", "x", "-1", "1 Gi", "9" * 30, "1e99", True, [], None, -1])
def test_what_is_no_amount_is_an_error(value: object) -> None:
    for read in (lambda reader: read_quantity(reader, 1e9), read_memory, read_duration):
        with pytest.raises(SpecError):
            read(Reader(value, "x"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("nvidia.com/gpu", True), ("amd.com/gpu", True), ("huawei.com/Ascend910", True), ("cpu", False), ("x/hca", False)],
)
def test_which_resources_are_accelerators(name: str, expected: bool) -> None:
    assert is_device(name) is expected
