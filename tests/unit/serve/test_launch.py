"""Binding, addresses and the start's account; the rest of a server's life is tested with real processes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from millpond.api.request import EngineInfo
from millpond.base.errors import ConfigError
from millpond.serve.launch import bind, describe_start, url_of
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


def test_the_start_says_what_runs_and_where_the_seconds_went() -> None:
    info = EngineInfo(
        model="tiny",
        family="llama",
        dtype="int8",
        dtype_reason="asked for",
        cache_dtype="bfloat16",
        executor="native",
        isa="amx",
        threads=2,
        vocab_size=320,
        max_model_len=512,
        num_blocks=16,
        block_size=32,
        weight_bytes=3 << 20,
        cache_bytes=1 << 30,
        eos_token_ids=[2],
        load_seconds={"import torch": 1.25, "open checkpoint": 0.01, "weights": 0.4},
    )
    text = describe_start(info, 2.04)
    assert "int8 (asked for)" in text
    assert "native executor, amx, 2 threads" in text
    assert "Loaded in 2.0 s; seconds of the engine: import torch 1.2, weights 0.4" in text


def test_the_gateway_starts_without_torch() -> None:
    code = "import sys, millpond.serve.launch; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
