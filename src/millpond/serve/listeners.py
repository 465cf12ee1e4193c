"""`listen`: the listening socket of a port that another library serves.

Owns what every such socket must have; knows no protocol. Ports call it before their server starts.
"""

from __future__ import annotations

import socket

_BACKLOG = 2048


def listen(host: str, port: int) -> socket.socket:
    """Returns a listening socket whose connections send small answers at once.

    The standard event loop sets TCP_NODELAY only on connections of sockets that it made itself; without it the second
    piece of an answer waits for the client to confirm the first, up to 40 ms.

    Raises:
        OSError: The address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # connections inherit it
    return listener
