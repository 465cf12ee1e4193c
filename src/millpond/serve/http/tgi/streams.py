"""TGI's streams: `data:` without a space, errors as events, and the status that comes before them.

In the compatible form a stream's status is 200 whatever happens; in the strict form what goes wrong before the first
token has its own status. Called by every route that streams.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from starlette.responses import Response

from millpond.serve.generation import Outlet
from millpond.serve.http.stream import DONE, EventStream, Pour, StreamForm
from millpond.serve.http.tgi.server import TgiCall

_HEARTBEAT = b":\n\n"


def event(data: bytes) -> bytes:
    """Returns one event. `data` is JSON, so it holds no line break."""
    return b"data:" + data + b"\n\n"


Begin = Callable[[], Coroutine[Any, Any, Pour]]


async def stream_answer(
    call: TgiCall, begin: Begin, headers: Mapping[str, str], *, is_openai: bool = False
) -> Response:
    """Returns the stream.

    Args:
        call: The call it answers.
        begin: Checks the request and returns what writes its frames.
        headers: Those of the response.
        is_openai: It is a stream of /v1, which has another error and an end marker.
    """
    server = call.server

    def failed(error: Exception) -> bytes:
        told = server.failed(error)
        return event(told.stream_json() if is_openai else told.json())

    form = StreamForm(DONE if is_openai else b"", _HEARTBEAT, failed)

    beginning = asyncio.ensure_future(begin())  # not after the head, or the engine would wait for that
    call.stack.push_async_callback(_cancel, beginning)

    async def later(outlet: Outlet) -> None:
        pour = await beginning
        await pour(outlet)

    settings = server.gateway.settings
    return EventStream(
        await beginning if server.settings.is_strict else later,
        send_timeout_s=settings.send_timeout_s,
        heartbeat_s=settings.heartbeat_s,
        form=form,
        headers=headers,
    )


async def _cancel(task: asyncio.Future[Pour]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
