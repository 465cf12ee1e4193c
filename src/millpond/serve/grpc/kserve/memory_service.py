"""The methods about shared memory; those about CUDA answer that there is none."""

from __future__ import annotations

from millpond.serve.grpc.kserve.service import Context
from millpond.serve.kserve.server import KServe
from millpond.serve.proto import inference_pb2 as pb
from millpond.serve.servables.errors import ServableError


class MemoryService:
    """Answers for one server."""

    def __init__(self, server: KServe) -> None:
        self._regions = server.regions

    async def system_status(
        self, request: pb.SystemSharedMemoryStatusRequest, context: Context
    ) -> pb.SystemSharedMemoryStatusResponse:
        message = pb.SystemSharedMemoryStatusResponse()
        for region in self._regions.status(request.name or None):
            found = message.regions[str(region["name"])]
            found.name, found.key = str(region["name"]), str(region["key"])
            found.offset, found.byte_size = int(str(region["offset"])), int(str(region["byte_size"]))
        return message

    async def system_register(
        self, request: pb.SystemSharedMemoryRegisterRequest, context: Context
    ) -> pb.SystemSharedMemoryRegisterResponse:
        self._regions.register(request.name, request.key, request.offset, request.byte_size)
        return pb.SystemSharedMemoryRegisterResponse()

    async def system_unregister(
        self, request: pb.SystemSharedMemoryUnregisterRequest, context: Context
    ) -> pb.SystemSharedMemoryUnregisterResponse:
        self._regions.unregister(request.name or None)
        return pb.SystemSharedMemoryUnregisterResponse()

    async def cuda_status(
        self, request: pb.CudaSharedMemoryStatusRequest, context: Context
    ) -> pb.CudaSharedMemoryStatusResponse:
        if request.name:
            raise ServableError("not_found", f"Unable to find cuda shared memory region: '{request.name}'")
        return pb.CudaSharedMemoryStatusResponse()

    async def cuda_register(
        self, request: pb.CudaSharedMemoryRegisterRequest, context: Context
    ) -> pb.CudaSharedMemoryRegisterResponse:
        raise ServableError(
            "invalid_argument",
            f"failed to register CUDA shared memory region: '{request.name}', GPUs not supported",
        )

    async def cuda_unregister(
        self, request: pb.CudaSharedMemoryUnregisterRequest, context: Context
    ) -> pb.CudaSharedMemoryUnregisterResponse:
        return pb.CudaSharedMemoryUnregisterResponse()
