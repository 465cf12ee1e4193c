"""The methods of `inference.GRPCInferenceService`, and gRPC's health service.

Each method is translation: documents come from `KServe`, infer messages go through `infer_messages`. Errors end a call
with Triton's status and text; those of a stream are messages in it, and the stream goes on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing
from typing import Any, NoReturn, cast

import grpc
import grpc.aio
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError, Message

from millpond.serve.grpc.details import bounded
from millpond.serve.grpc.http2.calls import ServerCall
from millpond.serve.grpc.http2.server import Streaming
from millpond.serve.grpc.kserve.infer_messages import parse_version, read_request, write_response
from millpond.serve.grpc.kserve.stream import answer_stream, grpc_trace, read_stream
from millpond.serve.kserve.parameters import ClientFault
from millpond.serve.kserve.restrictions import Lock
from millpond.serve.kserve.server import KServe
from millpond.serve.kserve.trace_settings import LEVELS
from millpond.serve.proto import inference_pb2 as pb
from millpond.serve.servables.errors import ErrorCode, ServableError

Context = grpc.aio.ServicerContext[Any, Any]
MALFORMED = "Unable to parse request"
UNKNOWN_FAULT = "Internal error; the server's log says more."
_log = logging.getLogger("millpond.serve.kserve")
_STATUS: dict[ErrorCode, grpc.StatusCode] = {
    "unknown": grpc.StatusCode.UNKNOWN,
    "internal": grpc.StatusCode.INTERNAL,
    "not_found": grpc.StatusCode.NOT_FOUND,
    "invalid_argument": grpc.StatusCode.INVALID_ARGUMENT,
    "unavailable": grpc.StatusCode.UNAVAILABLE,
    "unsupported": grpc.StatusCode.UNIMPLEMENTED,
    "already_exists": grpc.StatusCode.ALREADY_EXISTS,
    "cancelled": grpc.StatusCode.CANCELLED,
}


def status_of(error: ServableError) -> grpc.StatusCode:
    """Returns the status of an error."""
    return grpc.StatusCode.INVALID_ARGUMENT if isinstance(error, ClientFault) else _STATUS[error.code]


async def abort(context: Context, error: ServableError) -> NoReturn:
    """Ends a call with an error."""
    await context.abort(status_of(error), bounded(error.message))
    raise AssertionError("abort returned")


class InferenceService:
    """Answers for one server."""

    def __init__(self, server: KServe) -> None:
        self._server = server

    async def server_live(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def server_ready(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._server.is_ready())

    async def model_ready(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        version = parse_version(request.version)
        return pb.ModelReadyResponse(ready=self._server.is_model_ready(request.name, version))

    async def server_metadata(self, request: pb.ServerMetadataRequest, context: Context) -> pb.ServerMetadataResponse:
        return ParseDict(self._server.metadata(), pb.ServerMetadataResponse())

    async def model_metadata(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:
        document = self._server.model_metadata(request.name, parse_version(request.version))
        return ParseDict(document, pb.ModelMetadataResponse())

    async def model_config(self, request: pb.ModelConfigRequest, context: Context) -> pb.ModelConfigResponse:
        document = self._server.model_config(request.name, parse_version(request.version))
        return ParseDict({"config": document}, pb.ModelConfigResponse())

    async def model_statistics(
        self, request: pb.ModelStatisticsRequest, context: Context
    ) -> pb.ModelStatisticsResponse:
        version = parse_version(request.version)
        document = self._server.statistics(request.name or None, version if request.name else None)
        return ParseDict(document, pb.ModelStatisticsResponse())

    async def model_infer(self, message: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        began_ns = time.monotonic_ns()
        server = self._server
        servable = server.servables.find(message.model_name, parse_version(message.model_version))
        config = servable.config
        if config.decoupled:
            raise ServableError(
                "unsupported", "ModelInfer RPC doesn't support models with decoupled transaction policy"
            )
        request, wishes = read_request(server, message, servable)
        request.arrived_ns = began_ns
        if not server.tracing.is_on or (trace := server.tracer.sample(message.model_name)) is None:
            response = await server.servables.infer(request)
            return write_response(server, config, message.id, wishes, response)
        with grpc_trace(trace, began_ns):
            request.trace = trace
            response = await server.servables.infer(request)
            return write_response(server, config, message.id, wishes, response)

    async def model_stream_infer(
        self, requests: AsyncIterator[pb.ModelInferRequest], context: Context
    ) -> AsyncIterator[bytes]:
        try:
            async with aclosing(read_stream(self._server, _well_formed(requests))) as messages:
                async for message in messages:
                    yield message
        except ServableError as error:
            await abort(context, error)

    async def repository_index(
        self, request: pb.RepositoryIndexRequest, context: Context
    ) -> pb.RepositoryIndexResponse:
        _check_repository(request.repository_name)
        return ParseDict({"models": await self._server.index(is_ready=request.ready)}, pb.RepositoryIndexResponse())

    async def repository_model_load(
        self, request: pb.RepositoryModelLoadRequest, context: Context
    ) -> pb.RepositoryModelLoadResponse:
        _check_repository(request.repository_name)
        parameters: dict[str, object] = {}
        for name in sorted(request.parameters):
            choice = request.parameters[name].WhichOneof("parameter_choice")
            parameters[name] = getattr(request.parameters[name], choice) if choice else None
            if name != "config" and not name.startswith("file:"):
                raise ServableError("invalid_argument", f"unrecognized load parameter '{name}'.")
            if name.startswith("file:") and choice != "bytes_param":
                raise ServableError(
                    "invalid_argument", f"invalid value type for load parameter '{name}', expected bytes_param."
                )
        await self._server.load(request.model_name, parameters)
        return pb.RepositoryModelLoadResponse()

    async def repository_model_unload(
        self, request: pb.RepositoryModelUnloadRequest, context: Context
    ) -> pb.RepositoryModelUnloadResponse:
        _check_repository(request.repository_name)
        dependents = False
        if "unload_dependents" in request.parameters:
            if request.parameters["unload_dependents"].WhichOneof("parameter_choice") != "bool_param":
                raise ServableError(
                    "invalid_argument", "invalid value type for 'unload_dependents' parameter, expected bool_param."
                )
            dependents = request.parameters["unload_dependents"].bool_param
        await self._server.unload(request.model_name, dependents=dependents)
        return pb.RepositoryModelUnloadResponse()

    async def trace_setting(self, request: pb.TraceSettingRequest, context: Context) -> pb.TraceSettingResponse:
        server, model = self._server, request.model_name
        if model:
            server.check_model(model)
        if request.settings:
            changes = {name: list(request.settings[name].value) or None for name in sorted(request.settings)}
            if changes.get("trace_level"):  # over gRPC, words that are no level are passed over
                changes["trace_level"] = [word for word in changes["trace_level"] or () if word in LEVELS]
            server.tracing.update(model, changes)
        message = pb.TraceSettingResponse()
        for name, value in server.tracing.document(model).items():
            message.settings[name].value.extend(value if isinstance(value, list) else [str(value)])
        return message

    async def log_settings(self, request: pb.LogSettingsRequest, context: Context) -> pb.LogSettingsResponse:
        changes: dict[str, object] = {}
        for name in sorted(request.settings):
            choice = request.settings[name].WhichOneof("parameter_choice")
            changes[name] = getattr(request.settings[name], choice) if choice else None
        if changes:
            self._server.logging.update(changes, is_grpc=True)
        message = pb.LogSettingsResponse()
        for name, value in self._server.logging.document().items():
            if isinstance(value, bool):
                message.settings[name].bool_param = value
            elif isinstance(value, int):
                message.settings[name].uint32_param = value
            else:
                message.settings[name].string_param = value
        return message


def make_stream(server: KServe, lock: Lock | None) -> Streaming:
    """Returns `ModelStreamInfer` for our own server: responses are written where they come about."""
    read = make_reader(pb.ModelInferRequest)

    async def requests(messages: AsyncIterator[bytes | memoryview]) -> AsyncIterator[Any]:
        async for message in messages:
            yield read(bytes(message))

    async def answer(call: ServerCall, messages: AsyncIterator[bytes | memoryview]) -> None:
        fault = None if lock is None else restricted(call.head.metadata, lock)
        if fault is not None:
            call.end(grpc.StatusCode.UNAVAILABLE.value[0], fault)
            return
        try:
            await answer_stream(server, _well_formed(requests(messages)), call)
        except ServableError as error:
            call.end(status_of(error).value[0], bounded(error.message))

    return answer


Method = Callable[[Any, Context], Awaitable[Any]]
StreamMethod = Callable[[Any, Context], Any]


class Malformed:
    """Stands for a message that is none; a deserializer that raises would fill the log at a client's will."""


def make_reader(message: type[Message]) -> Callable[[bytes], Message | Malformed]:
    """Returns a deserializer that never raises."""

    def read(data: bytes) -> Message | Malformed:
        try:
            return message.FromString(data)
        except DecodeError:
            return Malformed()

    return read


def restricted(metadata: Iterable[tuple[str, str | bytes]], lock: Lock) -> str | None:
    """Returns what to answer to a call that does not bring what a lock asks for; None when it does."""
    given = next((value for name, value in metadata if name == lock.key), None)
    return None if lock.opens(given) else f"This protocol is restricted, expecting header '{lock.header}'"


async def _open(context: Context, lock: Lock) -> None:
    """Ends a call that does not bring what the lock asks for."""
    fault = restricted(cast("Iterable[tuple[str, str | bytes]]", context.invocation_metadata() or ()), lock)
    if fault is not None:
        await context.abort(grpc.StatusCode.UNAVAILABLE, fault)


def locked(method: StreamMethod, lock: Lock) -> StreamMethod:
    """Returns a method of a stream that answers only those who bring what the lock asks for."""

    async def answer(request: Any, context: Context) -> AsyncIterator[Any]:
        await _open(context, lock)
        async with aclosing(method(request, context)) as messages:
            async for message in messages:
                yield message

    return answer


def guarded(method: Method, lock: Lock | None = None) -> Method:
    """Returns a method whose `ServableError`s end the call with their status, and that may ask for a secret."""

    async def answer(request: Any, context: Context) -> Any:
        if lock is not None:
            await _open(context, lock)
        if isinstance(request, Malformed):
            await context.abort(grpc.StatusCode.INTERNAL, MALFORMED)
        try:
            return await method(request, context)
        except ServableError as error:
            await abort(context, error)
        except grpc.aio.AbortError:
            raise
        except Exception:
            _log.exception("a call failed")
            await context.abort(grpc.StatusCode.INTERNAL, UNKNOWN_FAULT)

    return answer


async def _well_formed(requests: AsyncIterator[Any]) -> AsyncIterator[pb.ModelInferRequest]:
    async for request in requests:
        if isinstance(request, Malformed):
            raise ServableError("internal", MALFORMED)
        yield request


def _check_repository(name: str) -> None:
    if name:
        raise ServableError("unsupported", "'repository_name' specification is not supported")
