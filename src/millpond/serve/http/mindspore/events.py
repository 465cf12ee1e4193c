"""`Events`: the results of a stream as server-sent events, which begin once there is one.

What goes wrong before the first result has an answer of its own, so the head waits for it; events that are there before
the head is out are kept. Called by `app`; knows no ASGI.
"""

from __future__ import annotations

import asyncio

import msgspec

from millpond.serve.generation import Outlet
from millpond.serve.http.mindspore.bodies import make_error, render_text, render_value
from millpond.serve.http.stream import frame
from millpond.serve.http.text_template import TextTemplate
from millpond.serve.mindspore.calls import Failure, Result, Text


class Events:
    """Writes results; a `Room`, full from the first event until it is opened.

    Attributes:
        begun: Set once there is an event, or nothing to wait for.
        has_any: Whether there was an event.
    """

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.has_any = False
        self._kept: list[bytes] = []
        self._outlet: Outlet | None = None
        self._opened = asyncio.Event()
        self._name = ""  # of the text that the template is about
        self._template: TextTemplate | None = None

    @property
    def is_full(self) -> bool:
        return bool(self._kept) if self._outlet is None else self._outlet.is_full

    async def drained(self) -> None:
        await self._opened.wait()
        if self._outlet is not None:
            await self._outlet.drained()

    def begin(self) -> None:
        """There is nothing to wait for any more."""
        self.begun.set()

    def open(self, outlet: Outlet) -> None:
        """Writes to the connection from now on, what was kept first."""
        self._outlet = outlet
        kept, self._kept = self._kept, []
        if kept:
            outlet.write(b"".join(kept))
        self._opened.set()

    def write(self, result: Result | Text) -> None:
        """Writes a result."""
        data = self._event(result)
        if self._outlet is not None:
            self._outlet.write(data)
            return
        self._kept.append(data)
        self.has_any = True
        self.begun.set()

    def _event(self, result: Result | Text) -> bytes:
        if isinstance(result, Text):
            name, text = result.name, render_text(result.content)
            if self._template is None or name != self._name:
                self._name, self._template = name, TextTemplate(lambda text: _instance({name: text}))
            return self._template.fill(text)
        if isinstance(result, Failure):
            return frame(make_error(result.message))
        return _instance({name: render_value(result[name]) for name in sorted(result)})


def _instance(values: dict[str, object]) -> bytes:
    return frame(msgspec.json.encode({"instances": [values]}))
