"""`make_ports`: every port that speaks the Open Inference Protocol, as the settings say."""

from __future__ import annotations

from millpond.serve.kserve.server import KServe
from millpond.serve.ports import Port


def make_ports(server: KServe) -> list[Port]:
    """Returns the ports that are not left closed, in the order in which they open."""
    settings = server.settings
    ports: list[Port] = []
    if settings.grpc_port is not None:
        from millpond.serve.grpc.kserve.port import GrpcPort

        ports.append(GrpcPort(server, settings.grpc_port))
    if settings.http_port is not None:
        from millpond.serve.http.kserve.service import make_http_port

        ports.append(make_http_port(server, settings.http_port))
    if settings.metrics_port is not None:
        from millpond.serve.http.kserve.metrics import make_metrics_port

        ports.append(make_metrics_port(server, settings.metrics_port))
    return ports
