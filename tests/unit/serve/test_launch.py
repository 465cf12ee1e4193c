"""Binding, addresses and progress; the rest of a server's life is tested with real processes."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest

from millpond.base.errors import ConfigError
from millpond.serve.launch import bind, url_of
from millpond.serve.progress import LoadProgress
from millpond.serve.settings import ServeSettings


def test_port_0_picks_a_free_port() -> None:
    with bind(ServeSettings(port=0)) as listener:
        assert listener.getsockname()[1] > 0


def test_a_taken_port_is_an_error_that_says_what_to_do() -> None:
    with bind(ServeSettings(port=0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ConfigError, match=f"Port {port} on 127.0.0.1") as caught:
            bind(ServeSettings(port=port))
    assert caught.value.param == "serve.port"
    assert "--port" in caught.value.fix


def test_a_host_that_is_not_here_is_an_error() -> None:
    with pytest.raises(ConfigError):
        bind(ServeSettings(host="192.0.2.1", port=0))


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("::1", "http://[::1]:80"),
        ("mill", "http://mill:80"),
    ],
)
def test_the_address_can_be_opened(host: str, url: str) -> None:
    assert url_of(host, 80) == url


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_one_line_that_changes() -> None:
    stream = Terminal()
    progress = LoadProgress(stream)
    for fraction in (0.0, 0.001, 0.5):
        progress.report("weights", fraction)
    progress.end()
    assert stream.getvalue() == "\r\x1b[Kweights 0%\r\x1b[Kweights 50%\r\x1b[K"


def test_a_log_gets_one_line_a_stage() -> None:
    stream = io.StringIO()
    progress = LoadProgress(stream)
    for stage, fraction in (("weights", 0.0), ("weights", 1.0), ("warm-up", 0.5)):
        progress.report(stage, fraction)
    progress.end()
    assert stream.getvalue() == "weights\nwarm-up\n"


def test_the_gateway_starts_without_torch() -> None:
    code = "import sys, millpond.serve.launch; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
