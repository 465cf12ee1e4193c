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
        (["--http-restricted-api=health:k=v", "--http-restricted-api=trace:l=w"], "triton", "http_restricted",
         "health:k=v;trace:l=w"),
        (["--grpc-restricted-protocol=health:k=v"], "triton", "grpc_restricted", "health:k=v"),
        (["--grpc-use-ssl=1", "--grpc-server-cert=c", "--grpc-server-key=k"], "triton", "grpc_certificate", "c"),
        (["--grpc-use-ssl=1", "--grpc-server-cert=c", "--grpc-server-key=k", "--grpc-root-cert=r"], "triton",
         "grpc_client_ca", None),
        (["--grpc-use-ssl-mutual=1", "--grpc-server-cert=c", "--grpc-server-key=k", "--grpc-root-cert=r"], "triton",
         "grpc_client_ca", "r"),
        (["--grpc-server-cert=c"], "triton", "grpc_certificate", None),
        (["--trace-config=triton,file=t", "--trace-config=mode=triton"], "triton", "trace_file", "t"),
        (["--trace-file=t"], "triton", "trace_file", "t"),
        (["--trace-config=level=TIMESTAMPS", "--trace-config=level=TENSORS"], "triton", "trace_level",
         "TIMESTAMPS,TENSORS"),
        (["--trace-level=TENSORS", "--trace-level=OFF"], "triton", "trace_level", "OFF"),
        (["--trace-config=rate=7"], "triton", "trace_rate", 7),
        (["--trace-config=count=9"], "triton", "trace_count", 9),
        (["--trace-config=triton,log-frequency=5"], "triton", "trace_log_frequency", 5),
        (["--pinned-memory-pool-byte-size=0", "--backend-config=python,a=b"], "repository", "mode", "none"),
    ],
)  # fmt: skip
def test_flags_become_settings(arguments: list[str], section: str, field: str, value: Any) -> None:
    assert getattr(getattr(config(*arguments), section), field) == value


@pytest.mark.parametrize(
    "arguments",
    [
        ["--cache-config=redis,host=x"],
        ["--http-address=0.0.0.0", "--grpc-address=127.0.0.1"],
        ["--no-such-flag=1"],
        ["--grpc-use-ssl=1", "--grpc-server-cert=c"],
        ["--grpc-use-ssl-mutual=1", "--grpc-server-cert=c", "--grpc-server-key=k"],
        ["--trace-config=mode=opentelemetry"],
        ["--trace-config=opentelemetry,url=x"],
        ["--trace-config=speed=3"],
        ["--trace-rate=x"],
    ],
)
def test_what_cannot_be_done_is_refused(arguments: list[str]) -> None:
    with pytest.raises(click.UsageError):
        config(*arguments)
