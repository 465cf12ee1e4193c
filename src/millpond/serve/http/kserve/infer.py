"""`/v2/models/M/infer`: from an exchange to a servable and back, without a task of its own.

The servable calls `respond` on the event loop when it has the answer, so that a small request costs little more than
its tensors. Errors before the request was accepted are JSON; those of an execution are plain text, as Triton's are.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from millpond.serve.http.kserve.coding import choose_coding, compress
from millpond.serve.http.kserve.errors import respond_error
from millpond.serve.http.kserve.exchange import TEXT, Exchange, Request
from millpond.serve.http.kserve.infer_answer import write_answer
from millpond.serve.http.kserve.infer_request import HEADER_LENGTH, OutputWishes, read_infer
from millpond.serve.http.kserve.routes import Target
from millpond.serve.http.kserve.traces import begin_trace, end_trace
from millpond.serve.kserve.places import lent_place
from millpond.serve.kserve.plans import InferPlan
from millpond.serve.kserve.server import KServe
from millpond.serve.servables.calls import Call
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.messages import InferResponse
from millpond.serve.servables.servable import Servable
from millpond.serve.servables.tracing import RequestTrace

_LARGE = 64 << 10  # bytes of a body; smaller ones are copied as soon as they are placed


def answer_infer(server: KServe, exchange: Exchange, target: Target) -> None:
    """Answers an infer request."""
    asked = exchange.request
    try:
        servable = server.servables.find(target.model, target.version)
        if servable.config.decoupled:
            raise ServableError(
                "unsupported", "HTTP end point doesn't support models with decoupled transaction policy"
            )
        body, head = asked.body, asked.head
        json_bytes = _json_bytes(asked) if head is None else head.json_bytes
        if json_bytes < 0 and head is not None:
            json_bytes = head.json_bytes = _json_bytes(asked)
        plan: InferPlan | None
        if (found := target.plans.find(body, json_bytes)) is not None:
            plan, wishes = found
            request = plan.request(body)
        else:
            request, wishes = read_infer(server, asked, servable, target.version)
            plan = target.plans.keep(request, wishes, body, json_bytes)
        if len(body) > _LARGE and head is not None and head.place is None and plan is not None:
            head.place = _place(server, plan)
        request.arrived_ns = asked.began_ns
        pending = _Pending(server, exchange, servable, wishes, request.request_id, plan)
        exchange.on_gone = pending.cancel
        if server.tracing.is_on:
            request.trace = pending.trace = begin_trace(server, exchange, target.model)
        if request.sequence is None:
            call = servable.submit(request, pending)
        else:  # it may belong to a version that is leaving
            pending.servable, call = server.servables.submit(request, pending)
        pending.call = None if call.done else call
    except ServableError as error:
        respond_error(exchange, error, is_strict=server.settings.is_strict)


def _place(server: KServe, plan: InferPlan) -> Callable[[int], memoryview | None]:
    return lambda num_bytes: lent_place(server, plan, num_bytes, plan.first_place)


def _json_bytes(request: Request) -> int:
    given = request.headers.get(HEADER_LENGTH)
    return int(given) if given is not None and given.isdigit() and len(given) < 8 else 0


class _Pending(msgspec.Struct, eq=False):
    """The sink of one infer request."""

    _server: KServe
    _exchange: Exchange
    servable: Servable
    _wishes: OutputWishes
    _request_id: str
    plan: InferPlan | None
    call: Call | None = None
    trace: RequestTrace | None = None

    def respond(self, response: InferResponse) -> None:
        self.call = None  # nothing to cancel; and what a request holds must go now, not when cycles are looked for
        trace, self.trace = self.trace, None
        if trace is None:
            self._send(response)
            return
        complete_ns = time.monotonic_ns()
        self._send(response)
        end_trace(trace, complete_ns)

    def _send(self, response: InferResponse) -> None:
        exchange, plan = self._exchange, self.plan
        is_strict = self._server.settings.is_strict
        if response.error is not None:
            respond_error(exchange, response.error, is_strict=is_strict, content_type=TEXT)
            return
        asked = exchange.request
        accepted = asked.headers.get(b"accept-encoding")
        coding = None if accepted is None else choose_coding(accepted)
        if plan is not None and (coding is not None or exchange.closes or asked.is_http10):
            plan = None
        if plan is not None and (parts := plan.answer(self.servable.config, response)) is not None:
            exchange.respond_with(parts)
            return
        try:
            answer = write_answer(self._server, self.servable.config, self._request_id, self._wishes, response)
        except ServableError as error:
            respond_error(exchange, error, is_strict=is_strict, content_type=TEXT)
            return
        if plan is not None:
            head = exchange.head(200, sum(map(len, answer.parts)), answer.content_type, answer.headers)
            plan.learn_answer(self.servable.config, response, head + answer.parts[0])
        packed = compress(coding, answer.parts) if coding is not None else None
        if packed is not None and coding is not None:
            exchange.respond(200, packed, answer.content_type, [*answer.headers, (b"Content-Encoding", coding)])
        else:
            exchange.respond(200, answer.parts, answer.content_type, answer.headers)

    def cancel(self) -> None:
        """The client is gone."""
        trace, self.trace = self.trace, None
        if trace is not None:
            trace.release()
        call, self.call = self.call, None
        if call is not None:
            self.servable.cancel(call)
