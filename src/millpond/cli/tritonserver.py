"""`tritonserver`: starts a server of a model repository from the flags of the command of that name.

Flags with a meaning here become settings; those about GPUs, thread counts and the like are taken and do nothing, so
that scripts and manifests written for Triton start unchanged. It binds loopback unless an address is given.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import click

from millpond.base.errors import MillpondError
from millpond.cli.tritonserver_trace import trace_settings

if TYPE_CHECKING:
    from millpond.config.schema import EngineConfig
    from millpond.serve.ports import Port

_STARTED = {
    "Triton HTTP": "Started HTTPService at",
    "Triton gRPC": "Started GRPCInferenceService at",
    "Triton metrics": "Started Metrics Service at",
}
_WITHOUT_MEANING = (
    "allow-cpu-metrics",
    "allow-gpu-metrics",
    "allow-gpu",
    "backend-config",
    "backend-directory",
    "buffer-manager-thread-count",
    "cuda-memory-pool-byte-size",
    "cuda-virtual-address-size",
    "disable-auto-complete-config",
    "enable-peer-access",
    "grpc-infer-allocation-pool-size",
    "grpc-infer-response-compression-level",
    "grpc-infer-thread-count",
    "grpc-keepalive-time",
    "grpc-keepalive-timeout",
    "grpc-keepalive-permit-without-calls",
    "grpc-max-response-pool-size",
    "grpc-http2-max-pings-without-data",
    "host-policy",
    "http-header-forward-pattern",
    "http-thread-count",
    "log-error",
    "log-file",
    "log-format",
    "log-info",
    "log-verbose",
    "log-warning",
    "metrics-config",
    "metrics-interval-ms",
    "min-supported-compute-capability",
    "model-load-gpu-limit",
    "model-load-retry-count",
    "model-load-thread-count",
    "model-namespacing",
    "pinned-memory-pool-byte-size",
    "rate-limit-resource",
    "repoagent-directory",
    "reuse-grpc-port",
    "reuse-http-port",
    "cache-directory",
)
_flag = click.BOOL
_port = click.IntRange(0, 65535)


def _options() -> list[click.Parameter]:
    """Returns every flag that has a meaning, and those that have none."""
    meant: list[click.Parameter] = [
        click.Option(["--model-repository", "--model-store", "repositories"], multiple=True, help="Folder of models."),
        click.Option(["--model-control-mode"], type=click.Choice(["none", "poll", "explicit"], case_sensitive=False)),
        click.Option(["--load-model"], multiple=True, help="A model that explicit mode loads at the start; * is all."),
        click.Option(["--repository-poll-secs"], type=click.FloatRange(0)),
        click.Option(["--model-config-name"], help="Name of a custom configuration in the configs folders."),
        click.Option(["--strict-model-config"], type=_flag, help="true: models need a configuration."),
        click.Option(["--exit-on-error"], type=_flag, default=True, show_default=True),
        click.Option(["--exit-timeout-secs"], type=click.FloatRange(0), default=30.0, show_default=True),
        click.Option(["--strict-readiness"], type=_flag, default=True, show_default=True),
        click.Option(["--id", "server_id"], default="triton", show_default=True, help="What the server calls itself."),
        click.Option(["--allow-http"], type=_flag, default=True, show_default=True),
        click.Option(["--http-port"], type=_port, default=8000, show_default=True),
        click.Option(["--http-address"], help="Address to bind, for all ports."),
        click.Option(["--http-max-input-size"], type=click.IntRange(1)),
        click.Option(["--allow-grpc"], type=_flag, default=True, show_default=True),
        click.Option(["--grpc-port"], type=_port, default=8001, show_default=True),
        click.Option(["--grpc-address"], help="The same as --http-address."),
        click.Option(["--allow-metrics"], type=_flag, default=True, show_default=True),
        click.Option(["--metrics-port"], type=_port, default=8002, show_default=True),
        click.Option(["--metrics-address"], help="The same as --http-address."),
        click.Option(["--allow-client-shm"], type=_flag, default=True, show_default=True),
        click.Option(["--cache-config"], multiple=True, help="local,size=BYTES"),
        click.Option(["--response-cache-byte-size"], type=click.IntRange(0)),
        click.Option(["--rate-limit"], type=click.Choice(["off", "execution_count"], case_sensitive=False)),
        click.Option(["--grpc-use-ssl"], type=_flag, default=False, help="Serve gRPC with TLS."),
        click.Option(["--grpc-use-ssl-mutual"], type=_flag, default=False, help="Clients need a certificate, too."),
        click.Option(["--grpc-server-cert"], help="PEM file of the server's certificate."),
        click.Option(["--grpc-server-key"], help="PEM file of its key."),
        click.Option(["--grpc-root-cert"], help="PEM file of the authority of clients."),
        click.Option(["--http-restricted-api"], multiple=True, help="APIs that ask for a header: API,API:KEY=VALUE"),
        click.Option(["--grpc-restricted-protocol"], multiple=True, help="The same for gRPC."),
        click.Option(["--trace-config"], multiple=True, help="level=, rate=, count=, mode=, triton,file= and so on."),
        click.Option(["--trace-file"], help="The same as --trace-config triton,file=."),
        click.Option(["--trace-level"], multiple=True, help="The same as --trace-config level=."),
        click.Option(["--trace-rate"], help="The same as --trace-config rate=."),
        click.Option(["--trace-count"], help="The same as --trace-config count=."),
        click.Option(["--log-frequency"], help="The same as --trace-config triton,log-frequency=."),
    ]
    return [*meant, *(click.Option([f"--{name}"], multiple=True, hidden=True) for name in _WITHOUT_MEANING)]


@click.command(params=_options(), context_settings={"show_default": True})
@click.pass_context
def tritonserver(context: click.Context, /, **flags: Any) -> None:
    """Serves a model repository over HTTP, gRPC and a metrics port, as a Triton server does."""
    if not flags["repositories"]:
        raise click.UsageError("--model-repository must name the folder of models.")
    config = config_of(flags)
    from millpond.serve.repository_launch import run_repository_server

    context.exit(run_repository_server(config, _announce))


def config_of(flags: dict[str, Any]) -> EngineConfig:
    """Returns Millpond's settings for Triton's flags."""
    from millpond.config.schema import EngineConfig, RepositoryConfig, ServeConfig, TritonConfig

    hosts = {flags[name] for name in ("http_address", "grpc_address", "metrics_address")} - {None}
    if len(hosts) > 1:
        raise click.UsageError("--http-address, --grpc-address and --metrics-address must be the same here.")
    triton = TritonConfig(
        http_port=flags["http_port"] if flags["allow_http"] else None,
        grpc_port=flags["grpc_port"] if flags["allow_grpc"] else None,
        metrics_port=flags["metrics_port"] if flags["allow_metrics"] else None,
        host=hosts.pop() if hosts else None,
        max_body_bytes=flags["http_max_input_size"],
        server_name=flags["server_id"],
        shared_memory=flags["allow_client_shm"],
        strict_readiness=flags["strict_readiness"],
        http_restricted=";".join(flags["http_restricted_api"]) or None,
        grpc_restricted=";".join(flags["grpc_restricted_protocol"]) or None,
    )
    triton = replace(triton, **_tls(flags), **trace_settings(flags))
    repository = RepositoryConfig(
        path=":".join(flags["repositories"]),
        mode=_mode(flags["model_control_mode"]),
        load=",".join(flags["load_model"]) or None,
        poll_s=flags["repository_poll_secs"] or None,
        config_name=flags["model_config_name"],
        auto_complete=not (flags["strict_model_config"] or False),
        exit_on_error=flags["exit_on_error"],
        cache_bytes=_cache_bytes(flags["cache_config"]) or flags["response_cache_byte_size"],
        rate_limit=flags["rate_limit"] == "execution_count",
    )
    config = EngineConfig(triton=triton, repository=repository)
    return replace(config, serve=ServeConfig(drain_timeout_s=flags["exit_timeout_secs"] or 0.001))


def _mode(given: str | None) -> Literal["none", "poll", "explicit"]:
    modes: dict[str, Literal["poll", "explicit"]] = {"poll": "poll", "explicit": "explicit"}
    return modes.get((given or "none").lower(), "none")


def _cache_bytes(given: tuple[str, ...]) -> int | None:
    for item in given:
        name, _, setting = item.partition(",")
        key, _, value = setting.partition("=")
        if name == "local" and key == "size" and value.isdigit():
            return int(value)
        raise click.UsageError(f"--cache-config {item} is not local,size=BYTES; it is the only cache there is.")
    return None


def _tls(flags: dict[str, Any]) -> dict[str, Any]:
    """The settings of gRPC with TLS, none when it is not asked for."""
    if not (flags["grpc_use_ssl"] or flags["grpc_use_ssl_mutual"]):
        return {}
    needed = ["grpc_server_cert", "grpc_server_key", *(["grpc_root_cert"] if flags["grpc_use_ssl_mutual"] else [])]
    for name in needed:
        if not flags[name]:
            raise click.UsageError(f"gRPC with TLS needs --{name.replace('_', '-')}.")
    return {
        "grpc_certificate": flags["grpc_server_cert"],
        "grpc_key": flags["grpc_server_key"],
        "grpc_client_ca": flags["grpc_root_cert"] if flags["grpc_use_ssl_mutual"] else None,
    }


def _announce(port: Port) -> str:
    return f"{_STARTED.get(port.name, port.name)} {port.address}"


def main() -> None:
    """The console script."""
    try:
        tritonserver()
    except MillpondError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
