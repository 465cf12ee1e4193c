"""`ModelInfer` without a task of its own: from a message to a servable, whose answer ends the call.

The same call as `InferenceService.model_infer`, for the server that takes plain functions.
"""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import grpc
import msgspec
from google.protobuf.message import DecodeError

from millpond.serve.grpc.details import bounded
from millpond.serve.grpc.kserve.infer_messages import OutputWish, parse_version, read_request, write_response
from millpond.serve.grpc.kserve.infer_plan import MessagePlans, learn_answer
from millpond.serve.grpc.kserve.raw_parts import cut_raw
from millpond.serve.grpc.kserve.service import MALFORMED, UNKNOWN_FAULT, restricted, status_of
from millpond.serve.grpc.kserve.stream import grpc_trace
from millpond.serve.kserve.places import lent_place
from millpond.serve.proto import inference_pb2 as pb
from millpond.serve.servables.errors import ServableError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from millpond.serve.grpc.http2.calls import Message, ServerCall
    from millpond.serve.grpc.http2.large_message import Place
    from millpond.serve.grpc.http2.server import Direct
    from millpond.serve.kserve.plans import InferPlan
    from millpond.serve.kserve.raw import Buffer
    from millpond.serve.kserve.restrictions import Lock
    from millpond.serve.kserve.server import KServe
    from millpond.serve.servables.calls import Call
    from millpond.serve.servables.messages import InferResponse
    from millpond.serve.servables.servable import Servable

_log = logging.getLogger("millpond.serve.kserve")
_LARGE = 16 << 10  # bytes of a message, from which on copies cost more than cutting
_INTERNAL = grpc.StatusCode.INTERNAL.value[0]


def make_infer(server: KServe, lock: Lock | None) -> tuple[Direct, Place]:
    """Returns what answers an infer call, and what knows where large messages are wanted."""
    plans = MessagePlans()

    def answer(call: ServerCall, data: Message) -> None:
        if lock is not None and (fault := restricted(call.head.metadata, lock)) is not None:
            call.end(grpc.StatusCode.UNAVAILABLE.value[0], fault)
            return
        try:
            _begin(server, plans, call, data)
        except ServableError as error:
            _refuse(call, error)
        except DecodeError:
            call.end(_INTERNAL, MALFORMED)
        except Exception:
            _log.exception("a call failed")
            call.end(_INTERNAL, UNKNOWN_FAULT)

    def place(length: int, first: bytes) -> memoryview | None:
        plan = plans.find_begun(length, first)
        return None if plan is None else lent_place(server, plan.infer, length, plan.infer.first_place)

    return answer, place


def _begin(server: KServe, plans: MessagePlans, call: ServerCall, data: Message) -> None:
    began_ns = time.monotonic_ns()
    wishes: Mapping[str, OutputWish]
    plan = plans.find(data)
    if plan is not None:
        servable = _find(server, plan.infer.model, plan.infer.version)
        request, wishes = plan.infer.request(data), plan.wishes
    else:
        words, raw = cut_raw(data) if len(data) > _LARGE else (data, [])
        message = pb.ModelInferRequest.FromString(bytes(words))
        servable = _find(server, message.model_name, parse_version(message.model_version))
        request, wishes = read_request(server, message, servable, raw)
        plan = plans.keep(data, request, wishes)
    request.arrived_ns = began_ns
    known = None if plan is None else plan.infer
    pending = _Pending(server, call, servable, wishes, request.request_id, known)
    if server.tracing.is_on and (trace := server.tracer.sample(request.model)) is not None:
        pending.trace = ExitStack()
        pending.trace.enter_context(grpc_trace(trace, began_ns))
        request.trace = trace
    call.on_gone = pending.cancel
    try:
        if request.sequence is None:
            accepted = servable.submit(request, pending)
        else:  # it may belong to a version that is leaving
            pending.servable, accepted = server.servables.submit(request, pending)
        pending.call = None if accepted.done else accepted
    except ServableError:
        pending.end_trace()
        raise


def _find(server: KServe, model: str, version: int | None) -> Servable:
    servable = server.servables.find(model, version)
    if servable.config.decoupled:
        raise ServableError("unsupported", "ModelInfer RPC doesn't support models with decoupled transaction policy")
    return servable


def _refuse(call: ServerCall, error: ServableError) -> None:
    call.end(status_of(error).value[0], bounded(error.message))


class _Pending(msgspec.Struct, eq=False):
    """The sink of one call."""

    _server: KServe
    _grpc_call: ServerCall
    servable: Servable
    _wishes: Mapping[str, OutputWish]
    _request_id: str
    plan: InferPlan | None
    call: Call | None = None
    trace: ExitStack | None = None

    def respond(self, response: InferResponse) -> None:
        self.call = None  # nothing to cancel; and what a request holds must go now, not when cycles are looked for
        call = self._grpc_call
        try:
            if response.error is not None:
                _refuse(call, response.error)
            else:
                call.answer(*self._answer(response))
        except ServableError as error:
            _refuse(call, error)
        finally:
            self.end_trace()

    def _answer(self, response: InferResponse) -> Sequence[Buffer]:
        """Returns an answer's bytes in parts."""
        config, plan = self.servable.config, self.plan
        if plan is not None and (parts := plan.answer(config, response)) is not None:
            return parts
        message = write_response(self._server, config, self._request_id, self._wishes, response)
        if plan is not None:
            learn_answer(plan, config, response, message)
        return (message.SerializeToString(),)

    def end_trace(self) -> None:
        """What there was to tell of the call has been told."""
        trace, self.trace = self.trace, None
        if trace is not None:
            trace.close()

    def cancel(self) -> None:
        """The client is gone."""
        self.end_trace()
        call, self.call = self.call, None
        if call is not None:
            self.servable.cancel(call)
