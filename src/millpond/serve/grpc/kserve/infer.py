"""`ModelInfer` without a task of its own: from a message to a servable, whose answer ends the call.

The same call as `InferenceService.model_infer`, for the server that takes plain functions.
"""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import grpc
from google.protobuf.message import DecodeError

from millpond.serve.grpc.details import bounded
from millpond.serve.grpc.kserve.infer_messages import OutputWish, parse_version, read_request, write_response
from millpond.serve.grpc.kserve.raw_parts import cut_raw
from millpond.serve.grpc.kserve.service import MALFORMED, UNKNOWN_FAULT, restricted, status_of
from millpond.serve.grpc.kserve.stream import grpc_trace
from millpond.serve.proto import inference_pb2 as pb
from millpond.serve.servables.errors import ServableError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from millpond.serve.grpc.http2.calls import ServerCall
    from millpond.serve.grpc.http2.server import Direct
    from millpond.serve.kserve.restrictions import Lock
    from millpond.serve.kserve.server import KServe
    from millpond.serve.servables.calls import Call
    from millpond.serve.servables.messages import InferResponse
    from millpond.serve.servables.servable import Servable

_log = logging.getLogger("millpond.serve.kserve")
_LARGE = 16 << 10  # bytes of a message, from which on copies cost more than cutting
_INTERNAL = grpc.StatusCode.INTERNAL.value[0]


def make_infer(server: KServe, lock: Lock | None) -> Direct:
    """Returns what answers an infer call."""

    def answer(call: ServerCall, data: bytes) -> None:
        if lock is not None and (fault := restricted(call.head.metadata, lock)) is not None:
            call.end(grpc.StatusCode.UNAVAILABLE.value[0], fault)
            return
        try:
            _begin(server, call, data)
        except ServableError as error:
            _refuse(call, error)
        except DecodeError:
            call.end(_INTERNAL, MALFORMED)
        except Exception:
            _log.exception("a call failed")
            call.end(_INTERNAL, UNKNOWN_FAULT)

    return answer


def _begin(server: KServe, call: ServerCall, data: bytes) -> None:
    began_ns = time.monotonic_ns()
    raw: list[memoryview] = []
    if len(data) > _LARGE:
        data, raw = cut_raw(data)
    message = pb.ModelInferRequest.FromString(data)
    servable = server.servables.find(message.model_name, parse_version(message.model_version))
    if servable.config.decoupled:
        raise ServableError("unsupported", "ModelInfer RPC doesn't support models with decoupled transaction policy")
    request, wishes = read_request(server, message, servable, raw)
    request.arrived_ns = began_ns
    pending = _Pending(server, call, servable, wishes, message.id)
    if server.tracing.is_on and (trace := server.tracer.sample(message.model_name)) is not None:
        pending.trace = ExitStack()
        pending.trace.enter_context(grpc_trace(trace, began_ns))
        request.trace = trace
    call.on_gone = pending.cancel
    try:
        pending.servable, pending.call = server.servables.submit(request, pending)
    except ServableError:
        pending.end_trace()
        raise


def _refuse(call: ServerCall, error: ServableError) -> None:
    call.end(status_of(error).value[0], bounded(error.message))


class _Pending:
    """The sink of one call."""

    __slots__ = ("_grpc_call", "_request_id", "_server", "_wishes", "call", "servable", "trace")

    def __init__(
        self, server: KServe, call: ServerCall, servable: Servable, wishes: Mapping[str, OutputWish], request_id: str
    ) -> None:
        self._server = server
        self._grpc_call = call
        self._wishes = wishes
        self._request_id = request_id
        self.servable = servable
        self.call: Call | None = None
        self.trace: ExitStack | None = None

    def respond(self, response: InferResponse) -> None:
        call = self._grpc_call
        try:
            if response.error is not None:
                _refuse(call, response.error)
            else:
                config = self.servable.config
                message = write_response(self._server, config, self._request_id, self._wishes, response)
                call.answer(message.SerializeToString())
        except ServableError as error:
            _refuse(call, error)
        finally:
            self.end_trace()

    def end_trace(self) -> None:
        """What there was to tell of the call has been told."""
        trace, self.trace = self.trace, None
        if trace is not None:
            trace.close()

    def cancel(self) -> None:
        """The client is gone."""
        self.end_trace()
        if self.call is not None:
            self.servable.cancel(self.call)
