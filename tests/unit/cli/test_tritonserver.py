"""Triton's flags as Millpond's settings."""

from __future__ import annotations

from typing import Any

import click
import pytest

from millpond.cli.tritonserver import config_of, tritonserver
from millpond.config.schema import EngineConfig


def config(*arguments: str) -> EngineConfig:
    context = tritonserver.make_context("tritonserver", ["--model-repository=r", *arguments])
    return config_of(context.params)


def test_without_flags_the_ports_are_tritons() -> None:
    triton = config().triton
    assert (triton.http_port, triton.grpc_port, triton.metrics_port) == (8000, 8001, 8002)
    assert triton.host is None
    assert config().repository.exit_on_error is True


@pytest.mark.parametrize(
    ("arguments", "section", "field", "value"),
    [
        (["--model-store", "s"], "repository", "path", "r:s"),
        (["--model-control-mode=EXPLICIT"], "repository", "mode", "explicit"),
        (["--load-model=a", "--load-model=b"], "repository", "load", "a,b"),
        (["--repository-poll-secs=3"], "repository", "poll_s", 3.0),
        (["--strict-model-config=true"], "repository", "auto_complete", False),
        (["--exit-on-error=false"], "repository", "exit_on_error", False),
        (["--cache-config=local,size=1048576"], "repository", "cache_bytes", 1048576),
        (["--rate-limit=execution_count"], "repository", "rate_limit", True),
        (["--allow-grpc=false"], "triton", "grpc_port", None),
        (["--http-address=0.0.0.0"], "triton", "host", "0.0.0.0"),
        (["--id=mine"], "triton", "server_name", "mine"),
        (["--exit-timeout-secs=7"], "serve", "drain_timeout_s", 7.0),
        (["--pinned-memory-pool-byte-size=0", "--backend-config=python,a=b"], "repository", "mode", "none"),
    ],
)
def test_flags_become_settings(arguments: list[str], section: str, field: str, value: Any) -> None:
    assert getattr(getattr(config(*arguments), section), field) == value


@pytest.mark.parametrize(
    "arguments",
    [["--cache-config=redis,host=x"], ["--http-address=0.0.0.0", "--grpc-address=127.0.0.1"], ["--no-such-flag=1"]],
)
def test_what_cannot_be_done_is_refused(arguments: list[str]) -> None:
    with pytest.raises(click.UsageError):
        config(*arguments)
