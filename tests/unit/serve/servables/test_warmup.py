"""Sample requests run on every instance before the servable is ready."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from millpond.serve.servables.backend import ModelFolder, Replies
from millpond.serve.servables.config import InstanceGroup, WarmupSample
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.messages import InferRequest, InferResponse
from millpond.serve.servables.registry import Servables
from tests.support.memory_backend import MemoryBackend, MemoryInstance, echo, echo_config, tensor

SAMPLE = WarmupSample("first", 3, 2, (tensor("X", [1, 2]),))
CONFIG = replace(echo_config("m"), max_batch_size=4, warmup=(SAMPLE,), instance_groups=(InstanceGroup("g", 2),))


async def test_every_instance_is_warmed_up_and_it_is_not_counted() -> None:
    backend = MemoryBackend(echo)
    servables = Servables({"memory": backend})
    servable = await servables.add(CONFIG, ModelFolder(None, 1))
    assert len(backend.instances) == 2
    for instance in backend.instances:
        assert [len(batch) for batch in instance.batches] == [1, 1]
        assert instance.batches[0][0].inputs["X"].array.tolist() == [[1, 2]] * 3
    assert (servable.statistics.execution_count, servable.statistics.success.count) == (0, 0)
    await servables.close()


@pytest.mark.parametrize("is_raised", [True, False])
async def test_a_sample_that_fails_is_a_servable_that_does_not_load(is_raised: bool) -> None:
    async def broken(instance: MemoryInstance, requests: Sequence[InferRequest], replies: Replies) -> None:
        error = ServableError("internal", "no such layer")
        if is_raised:
            raise error
        replies.send(0, InferResponse("m", 1, error=error))

    backend = MemoryBackend(broken)
    servables = Servables({"memory": backend})
    with pytest.raises(ServableError, match="failed to run warmup sample 'first': no such layer"):
        await servables.add(CONFIG, ModelFolder(None, 1))
    assert [instance.is_closed for instance in backend.instances] == [True]
    assert servables.index()[0].reason.endswith("no such layer")
