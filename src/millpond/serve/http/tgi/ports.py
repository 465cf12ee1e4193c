"""What the TGI protocol listens on: its HTTP port, and the Unix socket of its shard."""

from __future__ import annotations

from millpond.config.schema import EngineConfig
from millpond.serve.gateway import Gateway
from millpond.serve.http.port import AppPort
from millpond.serve.http.tgi.app import make_tgi_app
from millpond.serve.http.tgi.settings import resolve_tgi
from millpond.serve.ports import Port


def make_ports(config: EngineConfig, gateway: Gateway) -> list[Port]:
    """Returns the ports that were asked for, none of them open yet.

    Raises:
        ConfigError: The settings make no sense.
    """
    asked = config.tgi
    ports: list[Port] = []
    settings = resolve_tgi(asked, gateway.settings)
    if asked.port is not None:
        app = make_tgi_app(gateway, settings)
        ports.append(
            AppPort("TGI", app, host=settings.host, port=settings.port, param="tgi.port", drain=gateway.wait_idle)
        )
    if asked.shard_socket is not None:
        from millpond.serve.grpc.tgi_shard.port import ShardPort

        ports.append(ShardPort(gateway, asked.shard_socket))
    return ports
