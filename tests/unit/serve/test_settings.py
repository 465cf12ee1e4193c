"""What the server's settings become, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from millpond.base.errors import ConfigError
from millpond.config.schema import ServeConfig
from millpond.serve.settings import ServeSettings, resolve_serve


def test_nothing_asked_for_gives_the_defaults() -> None:
    assert resolve_serve(ServeConfig()) == ServeSettings()


def test_what_is_asked_for_is_kept() -> None:
    asked = ServeConfig(
        host="::1", port=0, request_timeout_s=5.0, drain_timeout_s=1.5, max_body_bytes=1000, api_key_file=None
    )
    settings = resolve_serve(asked)
    assert (settings.host, settings.port, settings.request_timeout_s) == ("::1", 0, 5.0)
    assert (settings.drain_timeout_s, settings.max_body_bytes) == (1.5, 1000)


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        (ServeConfig(port=70000), "serve.port"),
        (ServeConfig(port=-1), "serve.port"),
        (ServeConfig(request_timeout_s=0), "serve.request_timeout_s"),
        (ServeConfig(drain_timeout_s=float("nan")), "serve.drain_timeout_s"),
        (ServeConfig(max_body_bytes=-5), "serve.max_body_bytes"),
        (ServeConfig(api_key_file="/does/not/exist"), "serve.api_key_file"),
    ],
)
def test_a_value_without_sense_is_refused_by_name(asked: ServeConfig, param: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_serve(asked)
    assert caught.value.param == param
    assert caught.value.fix


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [("127.0.0.1", True), ("127.3.2.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("mill", False)],
)
def test_loopback_addresses_are_known(host: str, is_loopback: bool) -> None:
    assert ServeSettings(host=host).is_loopback is is_loopback


def test_keys_are_the_lines_that_are_no_comments(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# people\n sk-one \n\nsk-two\n")
    keys = resolve_serve(ServeConfig(api_key_file=str(file))).keys
    assert keys is not None
    assert keys.accepts("sk-one")
    assert keys.accepts("sk-two")
    assert not keys.accepts("# people")
    assert not keys.accepts("")
    assert not keys.accepts("sk-one ")
    assert not keys.accepts("\udc80")


def test_a_key_file_without_keys_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# nothing yet\n\n")
    with pytest.raises(ConfigError, match="holds no key"):
        resolve_serve(ServeConfig(api_key_file=str(file)))
