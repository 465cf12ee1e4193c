"""`Ordering`: responses leave in the order in which their requests came, whichever instance is faster."""

from __future__ import annotations

from collections import deque

from millpond.serve.servables.calls import Call, Sink
from millpond.serve.servables.messages import InferResponse


class _Place:
    """Where a call stands in line; holds its responses back until those before it are over."""

    __slots__ = ("held", "is_over", "ordering", "sink")

    def __init__(self, ordering: Ordering, sink: Sink) -> None:
        self.ordering = ordering
        self.sink = sink
        self.held: list[InferResponse] = []
        self.is_over = False

    def respond(self, response: InferResponse) -> None:
        self.held.append(response)
        self.is_over = self.is_over or response.final
        self.ordering.flush()


class Ordering:
    """One line of calls."""

    def __init__(self) -> None:
        self._line: deque[_Place] = deque()

    def enter(self, call: Call) -> None:
        """Puts a call at the end of the line."""
        place = _Place(self, call.sink)
        call.sink = place
        self._line.append(place)

    def leave(self, call: Call) -> None:
        """A call is over, with or without responses."""
        if isinstance(call.sink, _Place):
            call.sink.is_over = True
            self.flush()

    def flush(self) -> None:
        """Lets out what need not wait any more."""
        line = self._line
        while line:
            place = line[0]
            held, place.held = place.held, []
            for response in held:
                place.sink.respond(response)
            if not place.is_over:
                return
            line.popleft()
