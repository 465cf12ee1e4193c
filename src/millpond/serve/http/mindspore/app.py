"""The REST application: one POST, one reply; server-sent events for methods that stream.

Bug-compatible, every answer has status 200 and errors are `{"error_msg": ...}`, as the original's clients expect; the
strict form has the same bodies with 4xx and 5xx. A plain ASGI application: the protocol has no routes to speak of.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from millpond.serve.http.mindspore.bodies import make_error, make_reply, parse_body, parse_instances
from millpond.serve.http.mindspore.events import Events
from millpond.serve.http.mindspore.target import parse_target
from millpond.serve.http.stream import DONE, ClientGone, Patience, SlowClient, frame, opened, until_gone
from millpond.serve.mindspore.calls import INVALID_INPUTS, SYSTEM_ERROR, Call, CallError, Result
from millpond.serve.mindspore.dispatch import Dispatcher

_log = logging.getLogger("millpond.serve.mindspore")
_BROKEN = "Serving Error: exception occurred"
_LARGE_BYTES = 64 << 10  # parsing more than this blocks the event loop for too long


@dataclass(frozen=True, slots=True)
class RestSettings:
    """How the port answers.

    Attributes:
        max_body_bytes: Largest request.
        is_strict: Whether errors have statuses of their own.
        body_timeout_s: Longest time a body may take to arrive.
        write_timeout_s: Longest time a streaming client may leave the connection full.
    """

    max_body_bytes: int = 100 << 20
    is_strict: bool = False
    body_timeout_s: float = 100.0
    write_timeout_s: float = 100.0


class RestApp:
    """The application.

    Args:
        dispatcher: Runs the calls.
        settings: How to answer.
    """

    def __init__(self, dispatcher: Dispatcher, settings: RestSettings) -> None:
        self._dispatcher = dispatcher
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            call = await self._read(scope, receive)
            if self._dispatcher.streams(call):
                await self._stream(call, scope, receive, send)
                return
            results = await until_gone(receive, self._dispatcher.predict(call))
            status, body = 200, await _in_thread_when_large(results)
        except ClientGone:
            return
        except CallError as error:
            status, body = self._fail(error)
        except Exception:
            _log.exception("a MindSpore REST request failed")
            status, body = self._fail(CallError(SYSTEM_ERROR, _BROKEN, status=500))
        await _send_whole(send, status, body)

    def _fail(self, error: CallError) -> tuple[int, bytes]:
        return error.status if self._settings.is_strict else 200, make_error(error.message)

    async def _read(self, scope: Scope, receive: Receive) -> Call:
        if scope["method"] != "POST":
            raise CallError(INVALID_INPUTS, "http message only support POST right now", status=405)
        body = await self._read_body(Headers(scope=scope), receive)
        path = scope["raw_path"].partition(b"?")[0].decode("latin-1")
        if len(body) > _LARGE_BYTES:
            return await asyncio.to_thread(_parse, path, body)
        return _parse(path, body)

    async def _read_body(self, headers: Headers, receive: Receive) -> bytes:
        limit = self._settings.max_body_bytes
        too_large = CallError(INVALID_INPUTS, f"http message is bigger than {limit}", status=413)
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._settings.body_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    size += len(message["body"])
                    if size <= limit:
                        chunks.append(message["body"])
                    elif size > limit * 2 or headers.get("expect"):
                        raise too_large  # a client that reads no answer before it has sent all is cut off
                    if not message.get("more_body"):
                        break
        except TimeoutError:
            raise CallError(INVALID_INPUTS, "http message did not arrive in time", status=408) from None
        if size > limit:
            raise too_large
        return b"".join(chunks)

    async def _stream(self, call: Call, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_gone(receive, self._write(call, scope, send))
        except (ClientGone, SlowClient):
            _log.debug("the client of a stream of %s went away", call.servable)

    async def _write(self, call: Call, scope: Scope, send: Send) -> None:
        events = Events()
        pouring = asyncio.create_task(self._dispatcher.pour(call, events.write, events))
        pouring.add_done_callback(lambda _: events.begin())
        try:
            await events.begun.wait()
            if pouring.done() and not events.has_any:
                pouring.result()  # what went wrong has an answer of its own
            headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")]
            patience = Patience(self._settings.write_timeout_s)
            async with opened(scope, send, headers, patience, has_piece=events.has_any) as outlet:
                events.open(outlet)
                try:
                    await pouring
                except CallError as error:
                    outlet.write(frame(make_error(error.message)))
                except Exception:  # the head is out, so there is no other place to tell it
                    _log.exception("a MindSpore REST stream failed")
                    outlet.write(frame(make_error(_BROKEN)))
                await outlet.drained()
                await outlet.send(DONE, more=False)
        finally:
            pouring.cancel()
            await asyncio.gather(pouring, return_exceptions=True)


def _parse(path: str, body: bytes) -> Call:
    document = parse_body(body)
    target = parse_target(path)
    return Call(target.servable, target.method, target.version, parse_instances(document))


async def _in_thread_when_large(results: list[Result]) -> bytes:
    size = sum(value.array.nbytes for result in results if isinstance(result, dict) for value in result.values())
    if size > _LARGE_BYTES:
        return await asyncio.to_thread(make_reply, results)
    return make_reply(results)


async def _send_whole(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
