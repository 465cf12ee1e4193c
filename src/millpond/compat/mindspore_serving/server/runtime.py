"""`Runtime`: the registry, the back ends and the dispatcher that a script's servers stand on.

Made by `ServingHost` when a script starts the first thing. Knows no threads.
"""

from __future__ import annotations

from dataclasses import dataclass

from millpond.compat.mindspore_serving.server.host import DRAIN_S
from millpond.compat.mindspore_serving.server.start_config import ServableStartConfig
from millpond.compat.mindspore_serving.server.worker.loader import NUM_WORKERS
from millpond.serve.backends.in_workers import make_worker_backends
from millpond.serve.backends.registry_calls import RegistryCalls
from millpond.serve.backends.stage_graph import LOADER
from millpond.serve.backends.worker_instance import WorkerSurroundings
from millpond.serve.mindspore.dispatch import Dispatcher
from millpond.serve.servables.backend import ModelFolder
from millpond.serve.servables.config import DynamicBatching, InstanceGroup, ServableConfig
from millpond.serve.servables.limits import ServableLimits
from millpond.serve.servables.registry import Servables

_LOADER = "millpond.compat.mindspore_serving.server.worker.loader:load_program"


@dataclass(frozen=True, slots=True)
class Runtime:
    """What runs."""

    servables: Servables
    dispatcher: Dispatcher

    async def load(self, config: ServableStartConfig) -> None:
        """Loads a servable; its version is known.

        Raises:
            ServableError: It cannot be loaded.
        """
        await self.servables.add(
            servable_config(config), ModelFolder(path=config.folder, version=config.version_number)
        )


def make_runtime(max_enqueued_requests: int) -> Runtime:
    """Returns a runtime without servables."""
    calls = RegistryCalls()
    servables = Servables(make_worker_backends(WorkerSurroundings(calls=calls)), ServableLimits(drain_s=DRAIN_S))
    calls.connect(servables)
    return Runtime(servables, Dispatcher(servables, max_enqueued_requests=max_enqueued_requests))


def servable_config(config: ServableStartConfig) -> ServableConfig:
    """Returns the servable for the stages back end: methods come from the servable's own file."""
    group = InstanceGroup(name=config.servable_name, count=config.num_workers, devices=config.device_ids)
    return ServableConfig(
        name=config.servable_name,
        backend="stages",
        inputs=(),
        outputs=(),
        instance_groups=(group,),
        dynamic_batching=DynamicBatching(),
        parameters={LOADER: _LOADER, NUM_WORKERS: str(config.num_workers)},
    )
