"""The ports that the settings ask for, over one registry. Called by the launcher; imports grpc only for a gRPC port."""

from __future__ import annotations

from millpond.config.schema import MindsporeConfig
from millpond.serve.mindspore.dispatch import MAX_ENQUEUED_REQUESTS, Dispatcher
from millpond.serve.ports import Port
from millpond.serve.servables.registry import Servables

_MAX_MESSAGE_MB = 100
_REST_TIMEOUT_S = 100


def make_ports(config: MindsporeConfig, servables: Servables, host: str) -> list[Port]:
    """Returns the ports, not started.

    Args:
        config: The settings of this protocol.
        servables: What they serve.
        host: Where to bind when the settings do not say.
    """
    host = config.host or host
    max_bytes = (config.max_message_mb or _MAX_MESSAGE_MB) << 20
    max_enqueued = config.max_enqueued_requests or MAX_ENQUEUED_REQUESTS
    ports: list[Port] = []
    if config.http_port is not None:
        from millpond.serve.http.mindspore.app import RestSettings
        from millpond.serve.http.mindspore.port import MindSporeRestPort

        dispatcher = Dispatcher(
            servables, max_enqueued_requests=max_enqueued, timeout_s=config.timeout_s or _REST_TIMEOUT_S
        )
        settings = RestSettings(max_body_bytes=max_bytes, is_strict=config.form == "strict")
        ports.append(MindSporeRestPort(dispatcher, host, config.http_port, settings=settings))
    if config.grpc_port is not None:
        from millpond.serve.grpc.mindspore.port import MindSporeGrpcPort

        dispatcher = Dispatcher(servables, max_enqueued_requests=max_enqueued)
        address = f"[{host}]:{config.grpc_port}" if ":" in host else f"{host}:{config.grpc_port}"
        ports.append(MindSporeGrpcPort(dispatcher, address, max_message_bytes=max_bytes))
    return ports
