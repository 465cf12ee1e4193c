"""The server side of MindSpore Serving's API: start servables, start servers, stop.

`start_servables` returns when the servables answer; the servers run in the script's own process until `stop` or Ctrl-C.
The API is one of the whole process, so this module owns the one `ServingHost`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TypeVar

from millpond.compat.mindspore_serving.server import distributed, master, register
from millpond.compat.mindspore_serving.server._process import HOST
from millpond.compat.mindspore_serving.server.addresses import UNIX, SSLConfig, make_context, parse_address, read_file
from millpond.compat.mindspore_serving.server.checks import check_int, check_str
from millpond.compat.mindspore_serving.server.start_config import ServableStartConfig, merge_config

__all__ = [
    "SSLConfig",
    "ServableStartConfig",
    "distributed",
    "master",
    "register",
    "start_grpc_server",
    "start_restful_server",
    "start_servables",
    "stop",
]

F = TypeVar("F", bound=Callable[..., None])
Configs = ServableStartConfig | distributed.DistributedStartConfig


def _stops_on_failure(function: F) -> F:
    """Stops everything when the call fails, as the original does."""

    @functools.wraps(function)
    def call(*args: object, **kwargs: object) -> None:
        try:
            function(*args, **kwargs)
        except BaseException:
            HOST.stop()
            raise

    return call  # type: ignore[return-value]  # has the signature of what it wraps


@_stops_on_failure
def start_servables(servable_configs: Configs | Sequence[Configs], enable_lite: bool = False) -> None:
    """Starts servables and waits until all their workers are ready.

    Args:
        servable_configs: One or several `ServableStartConfig`.
        enable_lite: Accepted; there is no other runtime here.

    Raises:
        RuntimeError: An argument is wrong, or a servable cannot be loaded; everything is stopped.
    """
    kinds = (ServableStartConfig, distributed.DistributedStartConfig)
    configs = (servable_configs,) if isinstance(servable_configs, kinds) else servable_configs
    if not isinstance(configs, (tuple, list)):
        raise RuntimeError(
            f"Parameter '{servable_configs}' should be ServableStartConfig, list or tuple of ServableStartConfig, but "
            f"actually {type(servable_configs)}"
        )
    local: list[ServableStartConfig] = []
    for config in configs:
        if not isinstance(config, kinds):
            raise RuntimeError(
                f"The item of parameter '{servable_configs}' should be ServableStartConfig, but actually "
                f"{type(config)}"
            )
        if isinstance(config, distributed.DistributedStartConfig):
            local.append(distributed.as_local(config))
        else:
            local.append(config)
    merged = merge_config(local)
    for merged_config in merged:
        if merged_config.dec_key is not None:
            raise RuntimeError(
                f"Encrypted model files are not supported (dec_key of servable {merged_config.servable_name}); "
                f"decrypt them first"
            )
    HOST.start_servables(merged)


@_stops_on_failure
def start_grpc_server(
    address: str = "0.0.0.0:5500", max_msg_mb_size: int = 100, ssl_config: SSLConfig | None = None
) -> None:
    """Starts the gRPC server.

    Args:
        address: "host:port" or "unix:path".
        max_msg_mb_size: Largest message in MiB, 1 to 512.
        ssl_config: None serves in the clear.

    Raises:
        RuntimeError: An argument is wrong, or the address cannot be bound.
    """
    from millpond.serve.grpc.mindspore.port import MindSporeGrpcPort
    from millpond.serve.grpc.tls import GrpcTls

    check_str("address", address)
    check_int("max_msg_mb_size", max_msg_mb_size, 1, 512)
    _check_ssl(ssl_config)
    if not address.startswith(UNIX):
        parse_address(address, "Serving gRPC server")
    tls = None
    if ssl_config is not None:
        make_context(ssl_config)  # says what is wrong with the files, which gRPC does not
        tls = GrpcTls(
            read_file(ssl_config.certificate, "certificate_chain"),
            read_file(ssl_config.private_key, "private_key"),
            None if ssl_config.custom_ca is None else read_file(ssl_config.custom_ca, "root certificate"),
            ssl_config.verify_client,
        )
    HOST.start_port(
        "gRPC",
        lambda dispatcher: MindSporeGrpcPort(dispatcher, address, max_message_bytes=max_msg_mb_size << 20, tls=tls),
        f"Serving Error: Serving gRPC server start failed, create server failed, address {address}",
    )
    print(f"Serving: Serving gRPC server start success, listening on {address}", flush=True)


@_stops_on_failure
def start_restful_server(
    address: str = "0.0.0.0:5900", max_msg_mb_size: int = 100, ssl_config: SSLConfig | None = None
) -> None:
    """Starts the REST server.

    Args:
        address: "host:port".
        max_msg_mb_size: Largest body in MiB, 1 to 512.
        ssl_config: None serves in the clear.

    Raises:
        RuntimeError: An argument is wrong, or the address cannot be bound.
    """
    from millpond.serve.http.mindspore.app import RestSettings
    from millpond.serve.http.mindspore.port import MindSporeRestPort

    check_str("address", address)
    check_int("max_msg_mb_size", max_msg_mb_size, 1, 512)
    _check_ssl(ssl_config)
    if address.startswith(UNIX):
        raise RuntimeError("Serving Error: RESTful server does not support binding to unix domain socket")
    target = parse_address(address, "RESTful server")
    tls = None if ssl_config is None else make_context(ssl_config)
    HOST.start_port(
        "RESTful",
        lambda dispatcher: MindSporeRestPort(
            dispatcher, target.host, target.port, settings=RestSettings(max_body_bytes=max_msg_mb_size << 20), tls=tls
        ),
        f"Serving Error: RESTful server start failed, bind to the socket address {address} failed",
    )
    print(f"Serving: Serving RESTful server start success, listening on {address}", flush=True)


def stop() -> None:
    """Stops the servers and the servables."""
    HOST.stop()


def _check_ssl(config: object) -> None:
    if config is not None and not isinstance(config, SSLConfig):
        raise RuntimeError(f"Parameter 'ssl_config' should be SSLConfig, but actually {type(config)}")
