from __future__ import annotations

import ast
from pathlib import Path

import pytest

from millpond.base.errors import ConfigError
from millpond.config import env


def test_cache_dir_is_the_one_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MILLPOND_CACHE", str(tmp_path))
    assert env.cache_dir() == tmp_path


def test_cache_dir_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MILLPOND_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert env.cache_dir() == tmp_path / "millpond"


def test_cache_dir_stands_in_the_home_otherwise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MILLPOND_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert env.cache_dir() == tmp_path / ".cache" / "millpond"


def test_a_setting_is_read_from_its_variable() -> None:
    assert env.setting_values({"MILLPOND_CACHE_BLOCK_SIZE": "64", "PATH": "/bin"}) == {"cache.block_size": "64"}


def test_an_unknown_variable_is_an_error_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'MILLPOND_CACHE_DTYPE'"):
        env.setting_values({"MILLPOND_CACHE_DTYPES": "auto"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MILLPOND_SERVICE_HOST", "10.0.0.1"),
        ("MILLPOND_SERVICE_PORT_HTTP", "8000"),
        ("MILLPOND_PORT", "tcp://10.0.0.1:8000"),
        ("MILLPOND_PORT_8000_TCP_ADDR", "10.0.0.1"),
        ("MILLPOND_SERVE_PORT", "tcp://10.0.0.1:8000"),
        ("MILLPOND_SERVE_PORT_8000_TCP", "tcp://10.0.0.1:8000"),
    ],
)
def test_service_variables_of_kubernetes_are_not_settings(name: str, value: str) -> None:
    assert env.setting_values({name: value}) == {}


@pytest.mark.parametrize(("text", "on"), [("1", True), ("true", True), ("0", False), ("", False)])
def test_switches(monkeypatch: pytest.MonkeyPatch, text: str, on: bool) -> None:
    monkeypatch.setenv("MILLPOND_DEBUG", text)
    monkeypatch.setenv("MILLPOND_OFFLINE", text)
    assert (env.is_debug(), env.is_offline()) == (on, on)


def test_only_env_reads_the_environment(repo_root: Path) -> None:
    readers = set()
    for path in (repo_root / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.attr] if isinstance(node, ast.Attribute) else []
            if isinstance(node, ast.ImportFrom) and node.module == "os":
                names = [alias.name for alias in node.names]
            if {"environ", "environb", "getenv", "putenv"} & set(names):
                readers.add(path.relative_to(repo_root / "src" / "millpond").as_posix())
    assert readers == {"config/env.py"}
