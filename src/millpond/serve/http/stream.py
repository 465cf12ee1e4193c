"""Server-sent events, and noticing at once that a client went away.

`EventStream` is the response of every streaming route: it gives frames a way out, keeps silent connections alive,
gives up on clients that do not read, and turns an error into a last frame. The way out is the connection itself where
the server lends it (`wire.BodyPipe`), and ASGI messages where not. `until_gone` runs work only as long as its client is
there. What they run is cancelled with them; closing generators is the caller's part. The bytes around the frames are a
`StreamForm`; OpenAI's is the default.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from millpond.base.errors import MillpondError
from millpond.serve.generation import Outlet
from millpond.serve.http.errors import ApiError, from_error, internal_error
from millpond.serve.http.wire import BodyPipe, begin_response

T = TypeVar("T")
Pour = Callable[[Outlet], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

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


async def settled(receive: Receive, task: asyncio.Future[Any], timeout_s: float) -> None:
    """Waits until a task has ended, at most so long; the task goes on whatever happens.

    Raises:
        ClientGone: The client went away first.
    """
    gone = asyncio.ensure_future(_wait_gone(receive))
    try:
        await asyncio.wait((task, gone), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if gone.done() and not task.done():
            raise ClientGone
    finally:
        gone.cancel()  # it ends in the next turn; what is there now need not wait for that


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


@dataclass(frozen=True, slots=True)
class Beginning:
    """What a stream waits for before its head is sent: an error until then has a status of its own.

    Attributes:
        first: Done with the first event, or with what went wrong.
        timeout_s: The head is sent after so long whatever there is.
    """

    first: asyncio.Future[Any]
    timeout_s: float

    async def wait(self) -> bool:
        """Waits until the head can be sent. Returns whether there is an event to send with it.

        Raises:
            Exception: What went wrong before.
        """
        await asyncio.wait((self.first,), timeout=self.timeout_s)
        if not self.first.done():
            return False
        self.first.result()
        return True


class EventStream(Response):
    """A stream of server-sent events.

    Args:
        pour: Writes whole frames, several at a time where they came together, and returns after the last one.
        send_timeout_s: Longest time the client may leave the connection full.
        heartbeat_s: A comment goes out after this much silence.
        form: The bytes around the events.
        headers: Further headers.
        begins_with: None sends the head at once.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        pour: Pour,
        *,
        send_timeout_s: float,
        heartbeat_s: float,
        form: StreamForm = OPENAI_FORM,
        headers: Mapping[str, str] | None = None,
        begins_with: Beginning | None = None,
    ) -> None:
        self.status_code = 200
        self.background = None
        self.body = b""
        self.init_headers({"X-Accel-Buffering": "no", **(headers or {})})
        del self.headers["content-length"]
        self._pour = pour
        self._form = form
        self._send_timeout_s = send_timeout_s
        self._heartbeat_s = heartbeat_s
        self._begins_with = begins_with
        self._has_begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_gone(receive, self._write(scope, send))
        except ClientGone:
            if not self._has_begun:
                raise
            _log.debug("the client of %s went away", scope["path"])
        except SlowClient:
            _log.warning("a client of %s did not read for %g s: cut off", scope["path"], self._send_timeout_s)

    async def _write(self, scope: Scope, send: Send) -> None:
        has_piece = self._begins_with is not None and await self._begins_with.wait()
        self._has_begun = True
        patience = Patience(self._send_timeout_s, self._form.heartbeat, self._heartbeat_s)
        async with opened(scope, send, self.raw_headers, patience, has_piece=has_piece) as outlet:
            await self._write_frames(outlet)

    async def _write_frames(self, outlet: BodyOutlet) -> None:
        try:
            await self._pour(outlet)
            await outlet.drained()
        except Exception as error:
            await outlet.send(self._form.failed(error))
        await outlet.send(self._form.done, more=False)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a stream waits for whom.

    Attributes:
        send_timeout_s: Longest time the client may leave the connection full.
        heartbeat: A comment for silent connections.
        heartbeat_s: It goes out after this much silence.
    """

    send_timeout_s: float
    heartbeat: bytes = b""
    heartbeat_s: float = math.inf


@asynccontextmanager
async def opened(
    scope: Scope, send: Send, headers: Headers, patience: Patience, *, has_piece: bool
) -> AsyncIterator[BodyOutlet]:
    """Begins a response and gives the way out of its body, watched as long as the block runs.

    Args:
        scope: The request's.
        send: Its way for messages.
        headers: The response's, whose status is 200.
        patience: How long to wait.
        has_piece: The block writes at once: the head goes with that.

    Raises:
        SlowClient: The client did not read; the block was cancelled.
    """
    head: Message = {"type": "http.response.start", "status": 200, "headers": headers}
    pipe = await begin_response(scope, send, head, has_piece=has_piece)
    outlet = BodyOutlet(send) if pipe is None else _PipeOutlet(send, pipe)
    writer = asyncio.current_task()
    assert writer is not None
    watch = _Watch(outlet, writer, patience)
    try:
        yield outlet
    except asyncio.CancelledError:
        if watch.is_slow:
            outlet.abort()
            raise SlowClient from None
        raise
    finally:
        await watch.end()


class _Watch:
    """Keeps a silent stream alive and cuts off a client that does not read.

    One timer a stream, in place of one a send, which would cost more than writing the frame.
    """

    def __init__(self, outlet: BodyOutlet, writer: asyncio.Task[Any], patience: Patience) -> None:
        self.is_slow = False
        self._outlet = outlet
        self._writer = writer
        self._heartbeat = patience.heartbeat
        self._heartbeat_s = patience.heartbeat_s
        self._timeout_s = patience.send_timeout_s
        self._beat: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(min(self._heartbeat_s, self._timeout_s), self._look)

    def _look(self) -> None:
        silence_s = self._outlet.silence_s()
        if self._outlet.is_sending and silence_s >= self._timeout_s:
            self.is_slow = True
            self._writer.cancel()
            return
        if silence_s >= self._heartbeat_s and not self._outlet.is_sending:
            self._beat = asyncio.ensure_future(self._outlet.send(self._heartbeat))
        wait_s = max(self._heartbeat_s / 4, self._heartbeat_s - silence_s)
        self._timer = self._loop.call_later(min(wait_s, self._timeout_s), self._look)

    async def end(self) -> None:
        """Stops, and ends what it was sending."""
        self._timer.cancel()
        if self._beat is not None:
            await _end(self._beat)


class BodyOutlet:
    """The way out of a body. Sends each write as an ASGI message, one after another: full until it was sent."""

    def __init__(self, send: Send) -> None:
        self._clock = asyncio.get_running_loop().time
        self._send = send
        self._unsent: list[bytes] = []
        self._last_s = self._clock()  # when the last send began
        self._num_sending = 0

    @property
    def is_full(self) -> bool:
        return bool(self._unsent)

    @property
    def is_sending(self) -> bool:
        return self._num_sending > 0

    def silence_s(self) -> float:
        return self._clock() - self._last_s

    def write(self, data: bytes) -> None:
        self._unsent.append(data)

    async def drained(self) -> None:
        while self._unsent:
            data, self._unsent = b"".join(self._unsent), []
            await self.send(data)

    def abort(self) -> None:
        """Closes the connection at once, where that can be done; a server of messages closes it in its own time."""

    async def send(self, data: bytes, more: bool = True) -> None:
        with self._sending():
            await self._send({"type": "http.response.body", "body": data, "more_body": more})

    @contextmanager
    def _sending(self) -> Iterator[None]:
        self._last_s = self._clock()
        self._num_sending += 1
        try:
            yield
        finally:
            self._num_sending -= 1


class _PipeOutlet(BodyOutlet):
    """Writes to the connection at once, without a message or a task's turn."""

    def __init__(self, send: Send, pipe: BodyPipe) -> None:
        super().__init__(send)
        self._pipe = pipe

    @property
    def is_full(self) -> bool:
        return self._pipe.is_full

    def write(self, data: bytes) -> None:
        self._last_s = self._clock()
        self._pipe.write(data)

    def abort(self) -> None:
        self._pipe.abort()

    async def send(self, data: bytes, more: bool = True) -> None:
        self._pipe.flush()
        await super().send(data, more)

    async def drained(self) -> None:
        self._pipe.flush()
        while self._pipe.is_full:
            with self._sending():
                await self._pipe.drained()


def _as_api_error(error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, MillpondError):
        return from_error(error)
    _log.error("a stream failed", exc_info=error)
    return internal_error()
