from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from millpond.base.machine import MachineInfo
from millpond.cli.doctor.bandwidth import Bandwidth, choose_buffer
from millpond.cli.doctor.command import as_document, as_lines
from millpond.cli.doctor.facts import PACKAGES, Facts, NativeState
from millpond.cli.doctor.findings import judge

MACHINE = MachineInfo(
    cpu_model="Test CPU",
    architecture="x86_64",
    isa="amx",
    cpu_flags=frozenset({"amx_tile"}),
    logical_cpus=4,
    allowed_cpus=(0, 1, 2, 3),
    physical_cores=4,
    cpu_quota=None,
    memory_total=16 << 30,
    memory_available=12 << 30,
    memory_limit=None,
    last_level_cache=32 << 20,
)
FACTS = Facts(
    machine=MACHINE,
    amx_permitted=True,
    python="3.11.7",
    versions=dict.fromkeys(PACKAGES, "1.0"),
    compiler="g++ 12",
    native=NativeState("_native.so", None),
    busy_cores=0.1,
    governor="performance",
    huge_pages="madvise",
    cache_dir="/cache",
    free_disk=100 << 30,
)
FAST = Bandwidth(15e9, 40e9, 4, 1 << 30, "numpy")


def facts(**changes: Any) -> Facts:
    machine = {name: changes.pop(name) for name in list(changes) if name in MachineInfo.__dataclass_fields__}
    return dataclasses.replace(FACTS, machine=dataclasses.replace(MACHINE, **machine), **changes)


def test_a_good_machine_has_no_findings() -> None:
    assert judge(FACTS, FAST) == []


@pytest.mark.parametrize(
    ("changes", "level", "word"),
    [
        ({"amx_permitted": False}, "slow", "kernel refuses"),
        ({"isa": "avx2"}, "slow", "not AVX-512"),
        ({"isa": "none"}, "slow", "lacks AVX2"),
        ({"isa": "avx512"}, "note", "no AMX"),
        ({"architecture": "aarch64"}, "slow", "aarch64"),
        ({"native": NativeState(None, "it was not built")}, "slow", "it was not built"),
        ({"allowed_cpus": (0, 1)}, "slow", "2 of 4 processors"),
        ({"cpu_quota": 2.5}, "slow", "2.5 processors' worth"),
        ({"physical_cores": 1}, "slow", "One core"),
        ({"busy_cores": 3.0}, "slow", "3.0 of 4 cores busy"),
        ({"memory_available": 1 << 30}, "error", "1.0 GiB of memory"),
        ({"free_disk": 1 << 20}, "error", "1.0 MiB are free under /cache"),
        ({"governor": "powersave"}, "slow", "powersave"),
        ({"huge_pages": "never"}, "slow", "huge pages"),
        ({"versions": {**FACTS.versions, "torch": None}}, "error", "Not installed: torch"),
        ({"versions": {**FACTS.versions, "uvloop": None}}, "slow", "uvloop"),
    ],
)
def test_one_thing_wrong_is_found_and_named(changes: dict[str, Any], level: str, word: str) -> None:
    (found,) = judge(facts(**changes), FAST)
    assert found.level == level
    assert word in found.what


def test_a_missing_compiler_is_the_fix_for_missing_ops() -> None:
    (found,) = judge(facts(native=NativeState(None, "it was not built"), compiler=None), FAST)
    assert "Install g++" in found.fix


def test_slow_memory_is_found() -> None:
    (found,) = judge(FACTS, dataclasses.replace(FAST, all_threads=2e9))
    assert "2.0 GB/s" in found.what


def test_the_worst_comes_first() -> None:
    found = judge(facts(isa="avx512", governor="powersave", free_disk=0), FAST)
    assert [finding.level for finding in found] == ["error", "slow", "note"]


@pytest.mark.parametrize(
    ("cache", "available", "buffer"),
    [(None, 16 << 30, 256 << 20), (105 << 20, 16 << 30, 420 << 20), (1 << 30, 16 << 30, 1 << 30), (None, 1, 64 << 20)],
)
def test_the_buffer_is_past_the_cache_and_within_memory(cache: int | None, available: int, buffer: int) -> None:
    assert choose_buffer(cache, available) == buffer


def test_the_report_says_when_all_is_well() -> None:
    assert as_lines(FACTS, FAST, [])[-1] == "Nothing is wrong and nothing holds this machine back."


def test_the_document_holds_facts_measurement_and_findings() -> None:
    document = as_document(FACTS, FAST, judge(facts(governor="powersave"), FAST))
    assert document["machine"]["cpu_flags"] == ["amx_tile"]
    assert document["bandwidth_bytes_per_s"]["all_threads"] == 40e9
    assert document["findings"][0]["level"] == "slow"
