"""`Port`: one protocol's listening socket, and the order in which a process opens and closes all it has.

Every protocol gives ports (`make_ports(settings, ...) -> list[Port]`); `launch.py` opens them together, and closes them
in two steps: first none takes new work, then, when what runs has ended or its time is up, the sockets close. Knows no
protocol.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Protocol


class Port(Protocol):
    """A protocol's server on one address.

    Attributes:
        name: For messages: "Triton HTTP", "TGI", "MindSpore gRPC".
        address: "host:port" or "unix:/path" once started, with the port that was really taken.
    """

    name: str

    @property
    def address(self) -> str: ...

    async def start(self) -> None:
        """Binds and answers from now on.

        Raises:
            ConfigError: The address is taken or is not ours.
        """

    async def drain(self, seconds: float) -> None:
        """Refuses new requests and waits, at most so long, until those that run have been answered."""

    async def stop(self) -> None:
        """Cuts off what still runs and closes the socket; never raises, and may be called without `start`."""


@contextlib.asynccontextmanager
async def open_ports(ports: Sequence[Port]) -> AsyncIterator[None]:
    """Has the ports started inside and stopped after; when one cannot start, none stays open."""
    started: list[Port] = []
    try:
        for port in ports:
            started.append(port)
            await port.start()
        yield
    finally:
        for port in reversed(started):
            await port.stop()


async def drain_ports(ports: Sequence[Port], seconds: float) -> None:
    """Drains all ports at the same time."""
    await asyncio.gather(*(port.drain(seconds) for port in ports))
