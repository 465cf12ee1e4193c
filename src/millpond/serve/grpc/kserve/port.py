"""`GrpcPort`: the inference service and gRPC's health service on an address; a `serve.ports.Port`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

from millpond.base.errors import ConfigError
from millpond.serve.grpc.http2.server import Http2Server
from millpond.serve.grpc.kserve.infer import make_infer
from millpond.serve.grpc.kserve.memory_service import MemoryService
from millpond.serve.grpc.kserve.service import (
    MALFORMED,
    Context,
    InferenceService,
    Malformed,
    guarded,
    locked,
    make_reader,
    make_stream,
)
from millpond.serve.grpc.servables.service import TypedServices
from millpond.serve.grpc.tls import GrpcTls, bind, read_tls
from millpond.serve.kserve.restrictions import Lock
from millpond.serve.kserve.server import KServe
from millpond.serve.proto import health_pb2
from millpond.serve.proto import inference_pb2 as pb

SERVICE = "inference.GRPCInferenceService"
_HEALTH = "grpc.health.v1.Health"
_WATCH_S = 0.5


class GrpcPort:
    """The services of one server.

    Args:
        server: Who answers.
        port: 0 picks a free one.
    """

    name = "Triton gRPC"

    def __init__(self, server: KServe, port: int) -> None:
        self._kserve = server
        self._port = port
        self._server: grpc.aio.Server | Http2Server | None = None

    @property
    def address(self) -> str:
        host = self._kserve.settings.host
        return f"[{host}]:{self._port}" if ":" in host else f"{host}:{self._port}"

    async def start(self) -> None:
        tls = self._read_tls()
        port = await (self._start_clear() if tls is None else self._start_with(tls))
        if not port:
            raise ConfigError(
                f"gRPC port {self._port} on {self._kserve.settings.host} cannot be bound.",
                fix="Stop what uses it, or give another with --triton.grpc_port (0 picks a free one).",
                param="triton.grpc_port",
            )
        self._port = port

    async def _start_clear(self) -> int:
        settings = self._kserve.settings
        server = Http2Server(settings.max_body_bytes)
        lock = settings.grpc_restrictions.get("inference")
        server.add_direct(f"/{SERVICE}/ModelInfer", *make_infer(self._kserve, lock))
        server.add_streaming(f"/{SERVICE}/ModelStreamInfer", make_stream(self._kserve, lock))
        server.add_generic_rpc_handlers(self._handlers())
        try:
            port = await server.start(settings.host, self._port)
        except OSError:
            return 0
        self._server = server
        return port

    async def _start_with(self, tls: GrpcTls) -> int:
        """With TLS, gRPC's own server."""
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", self._kserve.settings.max_body_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
            ]
        )
        server.add_generic_rpc_handlers(self._handlers())
        port = bind(server, self.address, tls)
        if port:
            self._server = server
            await server.start()
        return port

    def _handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        return (_inference(self._kserve), _health(self._kserve), TypedServices(self._kserve))

    def _read_tls(self) -> GrpcTls | None:
        settings = self._kserve.settings
        if settings.grpc_certificate is None or settings.grpc_key is None:
            if (settings.grpc_certificate, settings.grpc_key, settings.grpc_client_ca) != (None, None, None):
                raise ConfigError(
                    "gRPC with TLS needs a certificate and its key.",
                    fix="Give both triton.grpc_certificate and triton.grpc_key, or none.",
                    param="triton.grpc_certificate",
                )
            return None
        return read_tls(
            settings.grpc_certificate, settings.grpc_key, settings.grpc_client_ca, param="triton.grpc_certificate"
        )

    async def drain(self, seconds: float) -> None:
        if self._server is not None:
            await self._server.stop(seconds)

    async def stop(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await server.stop(0)


def _unary(method: Any, request: Any, response: Any, lock: Lock | None = None) -> grpc.RpcMethodHandler[Any, Any]:
    return grpc.unary_unary_rpc_method_handler(guarded(method, lock), make_reader(request), response.SerializeToString)


def _category(method: str) -> str:
    """What of the protocol a method belongs to, in the words of its restrictions."""
    if method in ("ServerLive", "ServerReady", "ModelReady"):
        return "health"
    if "SharedMemory" in method:
        return "shared-memory"
    if method.startswith("Repository"):
        return "model-repository"
    others = {"ModelConfig": "model-config", "ModelStatistics": "statistics", "TraceSetting": "trace"}
    return others.get(method) or ("logging" if method == "LogSettings" else "metadata")


def _inference(server: KServe) -> grpc.GenericRpcHandler:
    service, memory = InferenceService(server), MemoryService(server)
    locks = server.settings.grpc_restrictions
    methods = {
        "ServerLive": service.server_live,
        "ServerReady": service.server_ready,
        "ModelReady": service.model_ready,
        "ServerMetadata": service.server_metadata,
        "ModelMetadata": service.model_metadata,
        "ModelConfig": service.model_config,
        "ModelStatistics": service.model_statistics,
        "RepositoryIndex": service.repository_index,
        "RepositoryModelLoad": service.repository_model_load,
        "RepositoryModelUnload": service.repository_model_unload,
        "SystemSharedMemoryStatus": memory.system_status,
        "SystemSharedMemoryRegister": memory.system_register,
        "SystemSharedMemoryUnregister": memory.system_unregister,
        "CudaSharedMemoryStatus": memory.cuda_status,
        "CudaSharedMemoryRegister": memory.cuda_register,
        "CudaSharedMemoryUnregister": memory.cuda_unregister,
        "TraceSetting": service.trace_setting,
        "LogSettings": service.log_settings,
    }
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        name: _unary(method, getattr(pb, f"{name}Request"), getattr(pb, f"{name}Response"), locks.get(_category(name)))
        for name, method in methods.items()
    }
    lock = locks.get("inference")
    handlers["ModelInfer"] = _unary(service.model_infer, pb.ModelInferRequest, pb.ModelInferResponse, lock)
    handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
        service.model_stream_infer if lock is None else locked(service.model_stream_infer, lock),
        make_reader(pb.ModelInferRequest),
        None,
    )
    return grpc.method_handlers_generic_handler(SERVICE, handlers)


def _health(server: KServe) -> grpc.GenericRpcHandler:
    statuses = health_pb2.HealthCheckResponse

    def status(name: str) -> health_pb2.HealthCheckResponse:
        if name not in ("", SERVICE):
            return statuses(status=statuses.SERVICE_UNKNOWN)
        return statuses(status=statuses.SERVING if server.is_ready() else statuses.NOT_SERVING)

    async def check(request: health_pb2.HealthCheckRequest, context: Context) -> health_pb2.HealthCheckResponse:
        found = status(request.service)
        if found.status == statuses.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return found

    async def watch(
        request: health_pb2.HealthCheckRequest, context: Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        if isinstance(request, Malformed):
            await context.abort(grpc.StatusCode.INTERNAL, MALFORMED)
        last = None
        while True:
            found = status(request.service)
            if found != last:
                last = found
                yield found
            await asyncio.sleep(_WATCH_S)

    request, response = health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse
    lock = server.settings.grpc_restrictions.get("health")
    return grpc.method_handlers_generic_handler(
        _HEALTH,
        {
            "Check": _unary(check, request, response, lock),
            "Watch": grpc.unary_stream_rpc_method_handler(
                watch if lock is None else locked(watch, lock), make_reader(request), response.SerializeToString
            ),
        },
    )
