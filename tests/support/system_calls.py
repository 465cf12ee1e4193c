"""What a process's transports hand to the kernel, a system call at a time."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

import pytest


def sent_by_sockets(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Returns a list that gets what each system call of asyncio's transports and of `PromptWriter.write` sends."""
    sent: list[bytes] = []
    plain_send, plain_writev = socket.socket.send, os.writev

    def send(self: socket.socket, data: bytes, flags: int = 0) -> int:
        sent.append(bytes(data))
        return plain_send(self, data, flags)

    def writev(descriptor: int, parts: Sequence[bytes]) -> int:
        sent.append(b"".join(parts))
        return plain_writev(descriptor, parts)

    monkeypatch.setattr(socket.socket, "send", send)
    monkeypatch.setattr(os, "writev", writev)
    return sent
