"""HTTP by hand: whole requests, halves of them, slow ones and broken heads, and answers read without a client."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field

TIMEOUT_S = 300  # the machine may stand still for a while


@dataclass
class Answer:
    """A response; `headers` in lower case."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass
class HttpRequest:
    """A request to be written."""

    method: str
    path: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})

    def head(self, length: int | None = None) -> bytes:
        path = b"".join(
            b"%c" % byte if 0x20 < byte < 0x7F else b"%%%02x" % byte for byte in self.path.encode("utf-8", "replace")
        )
        lines = [b"%s %s HTTP/1.1" % (self.method.encode(), path or b"/"), b"Host: localhost", b"Connection: close"]
        lines += [f"{name}: {value}".encode("latin-1") for name, value in self.headers.items()]
        lines.append(b"Content-Length: %d" % (len(self.body) if length is None else length))
        return b"\r\n".join(lines) + b"\r\n\r\n"


BROKEN_HEADS = (
    b"GARBAGE\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999\r\n\r\n{}",
    b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
    b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nab",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 5000 + b"\r\n",
    b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"GET \xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    b"\x00" * 2000,
    b"",
)


async def ask(address: str, request: HttpRequest) -> Answer:
    """Sends a whole request."""
    answer = await send_raw(address, [request.head() + request.body])
    assert answer is not None, f"{request.method} {request.path[:200]} was not answered"
    return answer


async def send_raw(address: str, pieces: list[bytes], *, half_close: bool = False) -> Answer | None:
    """Sends pieces with pauses between them and returns what came; None when it was nothing."""
    data = b""
    async with asyncio.timeout(TIMEOUT_S):
        reader, writer = await connect(address)
        try:
            for number, piece in enumerate(pieces):
                if number:
                    await asyncio.sleep(0.01)
                writer.write(piece)
                await writer.drain()
            if half_close:
                writer.write_eof()
            while got := await reader.read(1 << 16):
                data += got
        except OSError:
            pass  # closed on us, as it may
        finally:
            writer.close()
    return read_answer(data) if data else None


async def connect(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Opens a connection to "host:port" or "unix:path"."""
    if address.startswith("unix:"):
        return await asyncio.open_unix_connection(address.removeprefix("unix:"))
    host, _, port = address.rpartition(":")
    return await asyncio.open_connection(host, int(port))


def read_answer(data: bytes) -> Answer:
    """Returns the last response of those in the data, with its body put together."""
    head, found, rest = data.partition(b"\r\n\r\n")
    assert found, data[:200]
    lines = head.decode("latin-1").split("\r\n")
    answer = Answer(int(lines[0].split()[1]))
    for line in lines[1:]:
        name, _, value = line.partition(":")
        answer.headers[name.strip().lower()] = value.strip()
    if answer.status == 100:
        return read_answer(rest)
    if answer.headers.get("transfer-encoding") == "chunked":
        while rest and (size := int(rest.partition(b"\r\n")[0] or b"0", 16)):
            _, _, rest = rest.partition(b"\r\n")
            answer.body += rest[:size]
            rest = rest[size + 2 :]
    else:
        answer.body = rest
    return answer


async def send_badly(address: str, request: HttpRequest, rng: random.Random) -> Answer | None:
    """Sends half a request, a slow one, one of another length than it says, or none at all."""
    whole = request.head() + request.body
    cut = rng.randrange(1, len(whole))
    match rng.randrange(5):
        case 0:
            return await send_raw(address, [rng.choice(BROKEN_HEADS)], half_close=True)
        case 1:
            return await send_raw(address, [whole[:cut]], half_close=True)
        case 2:
            _, writer = await connect(address)
            writer.write(whole[:cut])
            writer.close()
            return None
        case 3:
            step = max(1, len(whole) // 4)
            return await send_raw(address, [whole[at : at + step] for at in range(0, len(whole), step)])
        case _:
            return await send_raw(address, [request.head(len(request.body) + 7), request.body], half_close=True)


class SlowClients:
    """Connections that send a byte now and then for as long as the context lasts."""

    def __init__(self, addresses: list[str], each: int) -> None:
        self._addresses = [address for address in addresses for _ in range(each)]

    async def __aenter__(self) -> SlowClients:
        self._tasks = [asyncio.create_task(self._creep(address)) for address in self._addresses]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _creep(self, address: str) -> None:
        head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nX-A: "
        while True:
            _, writer = await connect(address)
            try:
                writer.write(head)
                while True:
                    await asyncio.sleep(0.5)
                    writer.write(b"a")
                    await writer.drain()
            except OSError:
                await asyncio.sleep(0.5)  # cut off, as it should be
            finally:
                writer.close()
