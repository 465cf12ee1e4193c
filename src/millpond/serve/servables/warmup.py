"""`warm_up`: runs a servable's sample requests on a new instance before anybody else does."""

from __future__ import annotations

import numpy as np

from millpond.serve.servables.backend import Instance
from millpond.serve.servables.config import ServableConfig, WarmupSample
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.messages import InferRequest, InferResponse
from millpond.serve.servables.tensors import Tensor


async def warm_up(config: ServableConfig, version: int, instance: Instance) -> None:
    """Runs every sample as often as it says.

    Raises:
        ServableError: A sample fails, so the servable would too.
    """
    for sample in config.warmup:
        request = make_request(config, version, sample)
        for _ in range(max(1, sample.count)):
            replies = _Replies()
            try:
                await instance.execute([request], replies)
            except ServableError as error:
                raise _failed(sample, error) from error
            if replies.error is not None:
                raise _failed(sample, replies.error)


def make_request(config: ServableConfig, version: int, sample: WarmupSample) -> InferRequest:
    """The request of a sample: its tensors, once for every row of the batch."""
    inputs = {}
    for tensor in sample.inputs:
        array = tensor.array
        if config.max_batch_size > 0:
            array = np.ascontiguousarray(np.broadcast_to(array, (max(1, sample.batch_size), *array.shape)))
        inputs[tensor.name] = Tensor(tensor.name, tensor.datatype, array)
    return InferRequest(config.name, inputs, version=version, request_id="warmup")


class _Replies:
    """Remembers only whether something went wrong."""

    def __init__(self) -> None:
        self.error: ServableError | None = None

    def send(self, index: int, response: InferResponse) -> None:
        self.error = self.error or response.error

    def cancelled(self, index: int) -> bool:
        return False

    def reschedule(self, index: int) -> None:
        return None


def _failed(sample: WarmupSample, error: ServableError) -> ServableError:
    return ServableError(error.code, f"failed to run warmup sample '{sample.name}': {error.message}")
