"""An engine's client whose steps a test makes: events reach streams as the real client gives them out.

Like `scripted_engine.py`, but with the real routes and text: nothing happens until the test pushes tokens.
"""

from __future__ import annotations

import itertools

from millpond.api.request import ErrorInfo, FinishReason, Request, TokenLogprob
from millpond.inference.engine.admission import check_request
from millpond.inference.engine.messages import SequenceOutput
from millpond.inference.engine.output import RequestText
from millpond.inference.engine.stream import OutputStream, RequestStream, Route
from millpond.inference.text import TextModel
from tests.support.scripted_engine import ScriptedEngine


class PushedEngine(ScriptedEngine):
    """Stands in for `AsyncEngine`.

    Attributes:
        routes: Of the requests that came, in their order.
        cancelled: Those of them whose streams were closed before their end.
    """

    def __init__(self, text: TextModel) -> None:
        super().__init__(text)
        self.routes: list[Route] = []
        self.cancelled: list[Route] = []
        self._ids = itertools.count()

    def generate(self, request: Request) -> OutputStream:
        """Admits a request as the real client does."""
        request = check_request(request, self.info)
        route = Route(str(next(self._ids)), request, RequestText(request, self.text.tokenizer))
        self.routes.append(route)
        return RequestStream(route, self._cancel)

    def push(self, token_ids: list[int], reason: FinishReason | None = None, index: int = 0) -> None:
        """A step that gives tokens to one choice of every request that still runs."""
        for route in self.routes:
            if not route.is_finished:
                self.push_to(route, token_ids, reason, index)

    def push_to(self, route: Route, token_ids: list[int], reason: FinishReason | None = None, index: int = 0) -> None:
        """Gives tokens to one choice of one request."""
        error = ErrorInfo("engine_dead", "The engine process ended.") if reason == "error" else None
        output = SequenceOutput(route.wire_id, index, list(token_ids), reason, error=error, queue_s=0.5)
        if route.request.params.logprobs is not None:
            output.logprobs = [TokenLogprob(token, -0.5, 1, []) for token in token_ids]
        route.push(output)

    def _cancel(self, route: Route) -> None:
        self.cancelled.append(route)
        route.fail("cancelled", ErrorInfo("cancelled", "The request was cancelled."))
