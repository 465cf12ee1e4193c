"""`TypedServices`: the service of every servable that is there, found when a client calls it.

Services come and go with their servables and change with them, so none is registered: a call names its service, and
the servable behind that name answers by the method that the proto file shows. Errors have the statuses of the
inference service.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from millpond.serve.descriptions.proto_plan import PACKAGE, CallPlan, plan_proto, service_name
from millpond.serve.grpc.kserve.service import MALFORMED, Context, Malformed, abort, guarded, locked, make_reader
from millpond.serve.grpc.servables.messages import ServiceMessages, read_message, write_message
from millpond.serve.kserve.server import KServe
from millpond.serve.servables.config import ServableConfig
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.messages import InferRequest

_PREFIX = f"/{PACKAGE}."
_MAX_KNOWN = 1024

if TYPE_CHECKING:
    Handler = grpc.RpcMethodHandler[Any, Any]


@dataclass(frozen=True, slots=True)
class _Known:
    """The service of a servable as it is configured now."""

    config: ServableConfig
    handlers: dict[str, Handler]


class TypedServices(grpc.GenericRpcHandler):
    """Answers for one server.

    Args:
        server: What is behind it.
    """

    def __init__(self, server: KServe) -> None:
        self._server = server
        self._known: dict[str, _Known] = {}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        """Returns what answers a method; None when no servable has it."""
        path = handler_call_details.method
        if not path.startswith(_PREFIX):
            return None
        service, _, method = path[1:].rpartition("/")
        model = self._find(service)
        if model is None:
            return None
        config = self._server.servables.find(model).config
        known = self._known.get(model)
        if known is None or known.config is not config:
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            known = self._known[model] = _Known(config, self._handlers(config))
        return known.handlers.get(method)

    def _find(self, service: str) -> str | None:
        """The servable of a service; of several whose names make the same one, the first."""
        servables = self._server.servables
        found = (name for name in servables.names() if ".".join(service_name(name)) == service)
        return next((name for name in found if servables.versions(name)), None)

    def _handlers(self, config: ServableConfig) -> dict[str, Handler]:
        plan = plan_proto(config)
        messages = ServiceMessages(plan)
        lock = self._server.settings.grpc_restrictions.get("inference")
        handlers: dict[str, Handler] = {}
        for call in plan.calls:
            response = messages.class_of(call.response)
            method = _Method(self._server, plan.model, call, response)
            read, write = make_reader(messages.class_of(call.request)), response.SerializeToString
            if call.contract.streams:
                stream = method.stream if lock is None else locked(method.stream, lock)
                handlers[call.name] = grpc.unary_stream_rpc_method_handler(stream, read, write)
            else:
                handlers[call.name] = grpc.unary_unary_rpc_method_handler(guarded(method.answer, lock), read, write)
        return handlers


class _Method:
    """One method of one servable."""

    def __init__(self, server: KServe, model: str, call: CallPlan, response: type[Any]) -> None:
        self._server = server
        self._model = model
        self._call = call
        self._response = response

    async def answer(self, message: Any, context: Context) -> Any:
        """Gives the one response."""
        found = None
        async with aclosing(self._server.stream(self._read(message))) as responses:
            async for response in responses:
                if response.error is not None:
                    raise response.error
                found = response.outputs if found is None else found
        if found is None:
            raise ServableError("internal", f"model '{self._model}' gave no response")
        return write_message(self._call.response, self._response, found)

    async def stream(self, message: Any, context: Context) -> AsyncIterator[Any]:
        """Gives every response."""
        if isinstance(message, Malformed):
            await context.abort(grpc.StatusCode.INTERNAL, MALFORMED)
        try:
            async with aclosing(self._server.stream(self._read(message))) as responses:
                async for response in responses:
                    if response.error is not None:
                        raise response.error
                    if response.outputs or not response.final:
                        yield write_message(self._call.response, self._response, response.outputs)
        except ServableError as error:
            await abort(context, error)

    def _read(self, message: Any) -> InferRequest:
        inputs = read_message(self._call.request, message, self._model)
        missing = [
            field.spec.name
            for field in self._call.request.fields
            if field.spec.name not in inputs and not field.spec.optional
        ]
        if missing:
            raise ServableError(
                "invalid_argument", f"the inputs {', '.join(map(repr, missing))} of model '{self._model}' are missing"
            )
        return InferRequest(self._model, inputs, method=self._call.contract.name)
