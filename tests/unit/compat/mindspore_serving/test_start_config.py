"""Configurations of servables: checks, folders, versions and merging, in the original's words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from millpond.compat.mindspore_serving.server.addresses import Address, SSLConfig, make_context, parse_address
from millpond.compat.mindspore_serving.server.start_config import ServableStartConfig, merge_config


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for version in ("1", "2", "10", "0", "x"):
        (tmp_path / "add" / version).mkdir(parents=True)
    (tmp_path / "add" / "servable_config.py").write_text("")
    return tmp_path


def wrong() -> Iterator[tuple[dict[str, Any], str]]:
    yield {"servable_directory": ""}, "Parameter 'servable_directory' should not be empty str"
    yield {"servable_directory": 1}, "Parameter 'servable_directory' should be str, but actually"
    yield {"servable_name": False}, "Parameter 'servable_name' should be str, but actually"
    yield {"version_number": False}, "Parameter 'version_number' should be int, but actually"
    yield {"version_number": -1}, "Parameter 'version_number' should be >= 0"
    yield {"device_ids": "1"}, "Parameter 'device_ids' should be int or tuple/list of int, but actually"
    yield {"device_ids": -1}, "The item value '-1' in parameter 'device_ids' should be >= 0"
    yield {"device_ids": (1, 1)}, "The item value '1' in parameter 'device_ids' should not be repeated"
    yield {"device_type": 123}, "Parameter 'device_type' should be str, but actually"
    yield {"device_type": ""}, "Parameter 'device_type' should not be empty str"
    yield {"device_type": "TPU"}, "Unsupported device type 'TPU', only support 'Ascend', 'GPU', 'CPU' and None"
    yield {"num_parallel_workers": 65}, r"Parameter 'num_parallel_workers' should be in range \[0,64\]"
    yield {"dec_key": "x"}, "Parameter 'dec_key' should be bytes, but actually"
    yield {"dec_key": b""}, "Parameter 'dec_key' should not be empty bytes"
    yield {"dec_key": b"123"}, "Parameter 'dec_key' length 3 expected to be 16, 24 or 32"
    yield {"dec_mode": "AES"}, "Parameter 'dec_mode' expected to be 'AES-GCM' or 'AES-CBC'"


@pytest.mark.parametrize(("arguments", "text"), list(wrong()))
def test_wrong_arguments_are_named(folder: Path, arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(RuntimeError, match=text):
        ServableStartConfig(**{"servable_directory": str(folder), "servable_name": "add", **arguments})


@pytest.mark.parametrize(
    ("devices", "parallel", "expected"), [(None, 0, 1), ((0, 1), 0, 2), ((0, 1), 5, 5), (3, 0, 1), (None, 4, 4)]
)
def test_workers_are_devices_or_more(folder: Path, devices: Any, parallel: int, expected: int) -> None:
    config = ServableStartConfig(str(folder), "add", devices, num_parallel_workers=parallel)
    assert config.num_workers == expected


def test_version_0_is_the_largest_number(folder: Path) -> None:
    assert merge_config([ServableStartConfig(str(folder), "add")])[0].version_number == 10


def test_one_version_is_merged_and_others_stand_beside(folder: Path) -> None:
    merged = merge_config(
        [
            ServableStartConfig(str(folder), "add", 1, num_parallel_workers=3),
            ServableStartConfig(str(folder), "add", (0, 2), 10),
            ServableStartConfig(str(folder), "add", 5, 2),
        ]
    )
    assert [(config.version_number, config.device_ids, config.num_workers) for config in merged] == [
        (10, (0, 1, 2), 3),
        (2, (5,), 1),
    ]


def test_missing_folders_and_files_are_named(folder: Path) -> None:
    (folder / "empty").mkdir()
    for name, version, text in (
        ("sub", 0, "Check servable config failed, directory '.*sub' not exist, servable directory '.*', servable name"),
        ("empty", 0, "Check servable config failed, file '.*' not exist"),
        ("add", 3, "There is no specified version directory of models, specified version number: 3"),
        ("../etc", 0, "Check servable config failed, directory"),
        (".", 0, "Check servable config failed, directory"),
    ):
        with pytest.raises(RuntimeError, match=text):
            merge_config([ServableStartConfig(str(folder), name, version_number=version)])


def test_configurations_that_contradict_each_other_are_refused(folder: Path) -> None:
    first = ServableStartConfig(str(folder), "add", 0)
    for second, text in (
        (ServableStartConfig(str(folder / "add"), "add", 1), "servable directory of servable name add is different"),
        (ServableStartConfig(str(folder), "add", 1, dec_key=b"A" * 16), "The dec key or dec mode of servable name"),
    ):
        with pytest.raises(RuntimeError, match=text):
            merge_config([first, second])
    ascend = [ServableStartConfig(str(folder), "add", 2, version, "Ascend") for version in (1, 2)]
    with pytest.raises(RuntimeError, match="Ascend 910 device id 2 is used repeatedly in servable add"):
        merge_config(ascend)


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("localhost", "is illegal, Missing ip or port"),
        (":80", "is illegal, Missing ip or port"),
        ("a:", "is illegal, Missing ip or port"),
        ("a:b", "port is not a number"),
        ("a:0", r"port 0 out of legal range \[1 ~ 65535\]"),
        ("a:-1", r"port -1 out of legal range \[1 ~ 65535\]"),
        ("a:65536", r"out of legal range \[1 ~ 65535\]"),
    ],
)
def test_addresses_that_are_none_are_refused(address: str, text: str) -> None:
    with pytest.raises(RuntimeError, match=f"The format of the Serving gRPC server address '{address}' .*{text}"):
        parse_address(address, "Serving gRPC server")
    assert parse_address("[::1]:80", "RESTful server") == Address("::1", 80)


def test_certificates_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"load certificate_chain from no\.crt failed"):
        make_context(SSLConfig("no.crt", "no.key"))
    with pytest.raises(RuntimeError, match="Parameter 'verify_client' should be bool"):
        SSLConfig("a", "b", None, 1)  # type: ignore[arg-type]
    (tmp_path / "x").write_text("no PEM")
    with pytest.raises(RuntimeError, match="private_key is not consistent with certificate"):
        make_context(SSLConfig(str(tmp_path / "x"), str(tmp_path / "x")))
