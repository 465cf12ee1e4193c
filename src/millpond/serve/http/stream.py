"""Server-sent events, and noticing at once that a client went away.

`EventStream` is the response of every streaming route: it writes frames as they come, keeps silent connections alive,
gives up on clients that do not read, and turns an error into a last frame. `until_gone` runs work only as long as its
client is there. What they run is cancelled with them; closing generators is the caller's part. The bytes around the
frames are a `StreamForm`; OpenAI's is the default.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from millpond.base.errors import MillpondError
from millpond.serve.http.errors import ApiError, from_error, internal_error

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"
_log = logging.getLogger("millpond.serve")


class ClientGone(Exception):
    """The client closed its connection; nobody will read an answer."""


class SlowClient(Exception):
    """The client left its connection full for too long."""


def frame(data: bytes) -> bytes:
    """Returns one event. `data` is JSON, so it holds no line break."""
    return b"data: " + data + b"\n\n"


async def until_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Runs `work` and returns its result.

    Raises:
        ClientGone: The client went away first; the work was cancelled and has ended.
    """
    running = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_wait_gone(receive))
    try:
        await asyncio.wait((running, gone), return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            raise ClientGone
        return running.result()
    finally:
        await _end(gone)
        await _end(running)


async def _wait_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _end(task: asyncio.Future[Any]) -> None:
    if task.done():
        return
    task.cancel()
    with suppress(asyncio.CancelledError, Exception):
        await task


@dataclass(frozen=True, slots=True)
class StreamForm:
    """What a protocol's streams hold beside their events.

    Attributes:
        done: The last bytes, whatever the end was.
        heartbeat: A comment for silent connections.
        failed: Makes the frames that tell of an error.
    """

    done: bytes
    heartbeat: bytes
    failed: Callable[[Exception], bytes]


def _openai_failure(error: Exception) -> bytes:
    return frame(_as_api_error(error).json())


OPENAI_FORM = StreamForm(DONE, b": still here\n\n", _openai_failure)


class EventStream(Response):
    """A stream of server-sent events.

    Args:
        frames: Whole frames, several at a time where they came together.
        send_timeout_s: Longest time the client may leave the connection full.
        heartbeat_s: A comment goes out after this much silence.
        form: The bytes around the events.
        headers: Further headers.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        frames: AsyncIterator[bytes],
        *,
        send_timeout_s: float,
        heartbeat_s: float,
        form: StreamForm = OPENAI_FORM,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status_code = 200
        self.background = None
        self.body = b""
        self.init_headers({"X-Accel-Buffering": "no", **(headers or {})})
        del self.headers["content-length"]
        self._frames = frames
        self._form = form
        self._send_timeout_s = send_timeout_s
        self._heartbeat_s = heartbeat_s
        self._last_s = 0.0  # when the last send began
        self._num_sending = 0
        self._is_slow = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_gone(receive, self._write(send))
        except ClientGone:
            _log.debug("the client of %s went away", scope["path"])
        except SlowClient:
            _log.warning("a client of %s did not read for %g s: cut off", scope["path"], self._send_timeout_s)

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        writer = asyncio.current_task()
        assert writer is not None
        # One timer a stream in place of one a send, which would cost more than writing the frame.
        guards = [asyncio.ensure_future(self._beat(send)), asyncio.ensure_future(self._cut_off(writer))]
        try:
            await self._write_frames(send)
        except asyncio.CancelledError:
            if self._is_slow:
                raise SlowClient from None
            raise
        finally:
            for guard in guards:
                await _end(guard)

    async def _write_frames(self, send: Send) -> None:
        try:
            async for data in self._frames:
                await self._send(send, data)
        except Exception as error:
            await self._send(send, self._form.failed(error))
        await self._send(send, self._form.done, more=False)

    async def _send(self, send: Send, data: bytes, more: bool = True) -> None:
        self._last_s = asyncio.get_running_loop().time()
        self._num_sending += 1
        try:
            await send({"type": "http.response.body", "body": data, "more_body": more})
        finally:
            self._num_sending -= 1

    async def _beat(self, send: Send) -> None:
        while True:
            await asyncio.sleep(max(self._heartbeat_s / 4, self._heartbeat_s - self._silence_s()))
            if self._silence_s() >= self._heartbeat_s and not self._num_sending:
                await self._send(send, self._form.heartbeat)

    async def _cut_off(self, writer: asyncio.Task[Any]) -> None:
        while not (self._num_sending and self._silence_s() >= self._send_timeout_s):
            await asyncio.sleep(self._send_timeout_s)
        self._is_slow = True
        writer.cancel()

    def _silence_s(self) -> float:
        return asyncio.get_running_loop().time() - self._last_s


def _as_api_error(error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, MillpondError):
        return from_error(error)
    _log.error("a stream failed", exc_info=error)
    return internal_error()
