"""`make_http_port`: the Open Inference Protocol on a port."""

from __future__ import annotations

import functools
import ipaddress

from millpond.serve.http.edge import is_local_name
from millpond.serve.http.kserve.errors import error_body
from millpond.serve.http.kserve.limits import HttpLimits
from millpond.serve.http.kserve.port import HttpPort
from millpond.serve.http.kserve.router import Router
from millpond.serve.kserve.server import KServe


def make_http_port(server: KServe, port: int) -> HttpPort:
    """Returns the port that answers for a server; 0 picks a free one."""
    host = server.settings.host
    router = Router(server, functools.partial(is_local_name, bound=host) if is_loopback(host) else None)
    limits = HttpLimits(router.handle, error_body, server.settings.max_body_bytes, server.settings.is_strict)
    return HttpPort("Triton HTTP", host, port, limits=limits, param="triton.http_port")


def is_loopback(host: str) -> bool:
    """Returns whether only this machine can connect to an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
