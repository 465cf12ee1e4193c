"""`HttpLimits`: what all connections of a port share: who answers, how much they may cost, and where they read.

Made by `service` and the metrics port, read by `connection`, counted by `port` when it drains. Holds no logic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from millpond.serve.http.kserve.exchange import Exchange
from millpond.serve.http.kserve.known_heads import KnownHeads

_READ_BYTES = 64 << 10  # at first: what is more of a body is read into its own place


@dataclass(slots=True)
class HttpLimits:
    """What all connections of a port share.

    Attributes:
        handle: Answers an exchange.
        refuse: Makes the body of an error that the connection itself answers.
        max_body_bytes: Of the body as sent, and as decompressed.
        is_strict: Whether a coding that is not known is the client's fault.
        num_busy: Exchanges that are being answered.
        read_buffer: Where connections read; what is in it is used or copied before the next one reads.
        heads: Those that were parsed before.
    """

    handle: Callable[[Exchange], None]
    refuse: Callable[[str], bytes]
    max_body_bytes: int
    is_strict: bool = False
    is_draining: bool = False
    num_busy: int = 0
    read_buffer: bytearray = field(default_factory=lambda: bytearray(_READ_BYTES), repr=False)
    heads: KnownHeads = field(default_factory=KnownHeads, repr=False)
