"""A server of the Open Inference Protocol whose one model, identity, runs in the server's own process.

    python -m bench.serving.tensor_models_inline

Prints its HTTP and gRPC ports and serves until it is ended. What it costs is the protocol and the registry alone;
`tensor_models_ladder` starts it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import uvloop

from bench.serving.tensor_models_folder import WIDTH
from millpond.serve.kserve.ports import make_ports
from millpond.serve.kserve.server import KServe
from millpond.serve.kserve.settings import TritonSettings
from millpond.serve.servables.backend import Ended, ExecutionTiming, Freed, ModelFolder, Replies
from millpond.serve.servables.config import InstanceGroup, ServableConfig
from millpond.serve.servables.messages import InferRequest, InferResponse
from millpond.serve.servables.registry import Servables
from millpond.serve.servables.tensors import Tensor, TensorSpec


class Identity:
    """The back end and its one instance."""

    name = "inline"
    concurrency = 1

    async def complete(self, config: ServableConfig, folder: ModelFolder) -> ServableConfig:
        return config

    async def load(self, config: ServableConfig, folder: ModelFolder, group: InstanceGroup, number: int) -> Identity:
        return self

    def begin(
        self, requests: Sequence[InferRequest], replies: Replies, ended: Ended, freed: Freed | None = None
    ) -> None:
        for index, request in enumerate(requests):
            given = request.inputs["IN"]
            replies.send(index, InferResponse(request.model, 1, {"OUT": Tensor("OUT", given.datatype, given.array)}))
        ended(ExecutionTiming())

    async def execute(self, requests: Sequence[InferRequest], replies: Replies) -> ExecutionTiming:
        self.begin(requests, replies, lambda _: None)
        return ExecutionTiming()

    async def cancel(self, request: InferRequest) -> None: ...

    async def restart(self) -> None: ...

    async def close(self) -> None: ...


async def serve() -> None:
    servables = Servables({"inline": Identity()})
    specs = {"inputs": (TensorSpec("IN", "FP32", (WIDTH,)),), "outputs": (TensorSpec("OUT", "FP32", (WIDTH,)),)}
    config = ServableConfig(name="identity", backend="inline", max_batch_size=64, **specs)
    await servables.add(config, ModelFolder(None, 1))
    ports = make_ports(KServe(servables, None, TritonSettings(http_port=0, grpc_port=0, metrics_port=None)))
    for port in ports:
        await port.start()
    addresses = {port.name: port.address for port in ports}
    print(*(addresses[name].rpartition(":")[2] for name in ("Triton HTTP", "Triton gRPC")), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())
