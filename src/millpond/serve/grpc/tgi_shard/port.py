"""The shard's port: the service on a Unix socket, where a TGI router looks for it.

The socket is named as TGI names them, the setting and the rank, and only its owner may connect. Started by
`launch.py`.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from millpond.base.errors import ConfigError, EngineDeadError, MillpondError, QueueFullError, RequestError
from millpond.serve.gateway import Gateway
from millpond.serve.grpc.details import bounded
from millpond.serve.grpc.tgi_shard.errors import ShardError
from millpond.serve.grpc.tgi_shard.service import ShardService
from millpond.serve.proto import generate_pb2 as pb

Asked = TypeVar("Asked", bound=Message)
Told = TypeVar("Told", bound=Message)
Call = Callable[[Asked], Awaitable[Told]]

SERVICE = "generate.v3.TextGenerationService"
_MAX_MESSAGE_BYTES = 64 << 20
_LONGEST_PATH = 100  # what a socket's address holds, less the rank
_STATUS = {
    "invalid": grpc.StatusCode.INVALID_ARGUMENT,
    "not_found": grpc.StatusCode.NOT_FOUND,
    "full": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "unavailable": grpc.StatusCode.UNAVAILABLE,
    "failed": grpc.StatusCode.INTERNAL,
}


class ShardPort:
    """The shard on its socket.

    Args:
        gateway: Has the engine.
        prefix: The socket's path without the rank.
    """

    name = "TGI shard"

    def __init__(self, gateway: Gateway, prefix: str) -> None:
        self._path = f"{os.path.abspath(prefix)}-0"
        self.service = ShardService(gateway, f"unix://{self._path}")
        self._server: grpc.aio.Server | None = None

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"unix://{self._path}"

    async def start(self) -> None:
        """Binds and answers from now on.

        Raises:
            ConfigError: The socket cannot be made, or another shard answers there.
        """
        make_room(Path(self._path))
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
            ]
        )
        server.add_generic_rpc_handlers((handlers(self.service),))
        try:
            server.add_insecure_port(self.address)
        except RuntimeError as error:
            await server.stop(None)
            raise _cannot_bind(self._path, str(error)) from None
        Path(self._path).chmod(0o600)
        await server.start()
        self._server = server

    async def drain(self, seconds: float) -> None:
        """Refuses new calls and waits for those that run."""
        if self._server is not None:
            await self._server.stop(seconds)

    async def stop(self) -> None:
        """Cuts off what runs and ends all sequences."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop(0)
            await self.service.batches.clear(None)
            Path(self._path).unlink(missing_ok=True)


def make_room(path: Path) -> None:
    """Removes a socket that a shard left when it died.

    Raises:
        ConfigError: Something else is there, or a shard that lives.
    """
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise _cannot_bind(str(path), f"its path is longer than {_LONGEST_PATH} bytes")
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise _cannot_bind(str(path), error.strerror or str(error)) from None
    if not stat.S_ISSOCK(kind):
        raise _cannot_bind(str(path), "there is something that is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
            return
    raise _cannot_bind(str(path), "another shard answers there")


def _cannot_bind(path: str, reason: str) -> ConfigError:
    return ConfigError(
        f"The shard's socket {path} cannot be made: {reason}.",
        fix="Give another prefix.",
        param="tgi.shard_socket",
    )


def handlers(service: ShardService) -> grpc.GenericRpcHandler:
    """Returns the service's calls for a gRPC server."""
    return grpc.method_handlers_generic_handler(
        SERVICE,
        {
            "Info": _unary(service.info, pb.InfoRequest, pb.InfoResponse),
            "ServiceDiscovery": _unary(service.discover, pb.ServiceDiscoveryRequest, pb.ServiceDiscoveryResponse),
            "ClearCache": _unary(service.clear_cache, pb.ClearCacheRequest, pb.ClearCacheResponse),
            "FilterBatch": _unary(service.filter_batch, pb.FilterBatchRequest, pb.FilterBatchResponse),
            "Warmup": _unary(service.warmup, pb.WarmupRequest, pb.WarmupResponse),
            "Prefill": _unary(service.prefill, pb.PrefillRequest, pb.PrefillResponse),
            "Decode": _unary(service.decode, pb.DecodeRequest, pb.DecodeResponse),
            "Health": _unary(service.health, pb.HealthRequest, pb.HealthResponse),
        },
    )


def _unary(call: Call[Asked, Told], asked: type[Asked], told: type[Told]) -> grpc.RpcMethodHandler[bytes, Told]:
    async def answer(data: bytes, context: grpc.aio.ServicerContext[bytes, Told]) -> Told:
        try:
            return await call(asked.FromString(data))
        except DecodeError:  # gRPC would call it unknown
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"The message is no {asked.DESCRIPTOR.name}.")
        except ShardError as error:
            await context.abort(_STATUS[error.kind], bounded(str(error)))
        except MillpondError as error:
            await context.abort(_status_of(error), bounded(str(error)))

    return grpc.unary_unary_rpc_method_handler(answer, None, told.SerializeToString)


def _status_of(error: MillpondError) -> grpc.StatusCode:
    if isinstance(error, RequestError):
        return grpc.StatusCode.INVALID_ARGUMENT
    if isinstance(error, QueueFullError):
        return grpc.StatusCode.RESOURCE_EXHAUSTED
    if isinstance(error, EngineDeadError):
        return grpc.StatusCode.UNAVAILABLE
    return grpc.StatusCode.INTERNAL
