"""`load_servable`: from a configuration and a folder to a servable that answers.

Lets the back end complete the configuration, loads every instance of every group, and puts the scheduler that the
configuration asks for in front of them. When one part fails, what was loaded before it is freed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from millpond.serve.servables.backend import Backend, Instance, ModelFolder, queues_ahead
from millpond.serve.servables.batching.dynamic import DynamicBatcher
from millpond.serve.servables.batching.one_by_one import OneByOne
from millpond.serve.servables.batching.rates import RateGate, RateLimiter
from millpond.serve.servables.batching.sequence import SequenceBatcher
from millpond.serve.servables.config import InstanceGroup, ServableConfig
from millpond.serve.servables.ensemble import Ensemble, Finder, check_ensemble
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.limits import ServableLimits
from millpond.serve.servables.replicas import Replica, ReplicaSet
from millpond.serve.servables.restarts import Backoff
from millpond.serve.servables.servable import Servable
from millpond.serve.servables.shared import Shared
from millpond.serve.servables.warmup import warm_up


def with_groups(config: ServableConfig) -> ServableConfig:
    """Gives every instance group a name and a count, and a servable without groups its one."""
    groups = config.instance_groups or (InstanceGroup(name=""),)
    named = tuple(
        replace(group, name=group.name or f"{config.name}_{index}", count=max(1, group.count))
        for index, group in enumerate(groups)
    )
    return config if named == config.instance_groups else replace(config, instance_groups=named)


async def load_servable(config: ServableConfig, folder: ModelFolder, backend: Backend, shared: Shared) -> Servable:
    """Loads one version and warms it up.

    Raises:
        ServableError: It cannot be loaded.
    """
    config = with_groups(await backend.complete(with_groups(config), folder))
    servable = Servable(config, folder.version, shared)
    instances: list[tuple[InstanceGroup, Instance]] = []
    try:
        for group in config.instance_groups:
            for number in range(group.count):
                instances.append((group, await backend.load(config, folder, group, number)))
                await warm_up(config, folder.version, instances[-1][1])
        gates = _make_gates([group for group, _ in instances], shared.rates)
    except BaseException:
        for _, instance in instances:
            await instance.close()
        raise
    limits = shared.limits
    replicas = ReplicaSet()
    scheduler = _make_scheduler(servable, replicas, limits)
    loaded: list[Replica] = []
    for (group, instance), gate in zip(instances, gates, strict=True):
        backoff = Backoff(limits.restart_first_s, limits.restart_longest_s, limits.restart_settled_s)
        may_run_ahead = isinstance(scheduler, OneByOne) and len(instances) == 1 and queues_ahead(instance)
        replica = Replica(
            instance, source=scheduler, host=servable, backoff=backoff, gate=gate, may_run_ahead=may_run_ahead
        )
        loaded.append(replica)
        if not group.passive:
            replicas.add(replica)
            if isinstance(scheduler, SequenceBatcher):
                scheduler.add_replica(replica)
    servable.start(scheduler, loaded)
    return servable


def load_ensemble(config: ServableConfig, version: int, finder: Finder, shared: Shared) -> Servable:
    """Makes a servable of other servables; they need not be there yet.

    Raises:
        ServableError: The steps do not fit together.
    """
    check_ensemble(config)
    servable = Servable(config, version, shared)
    servable.start(Ensemble(servable, finder, max_depth=shared.limits.max_ensemble_depth), [])
    return servable


def _make_gates(groups: Sequence[InstanceGroup], rates: RateLimiter | None) -> list[RateGate | None]:
    made: list[RateGate | None] = []
    try:
        for group in groups:
            made.append(rates.gate(group) if rates is not None and group.resources else None)
    except ServableError:
        for gate in made:
            if gate is not None:
                gate.close()
        raise
    return made


def _make_scheduler(
    servable: Servable, replicas: ReplicaSet, limits: ServableLimits
) -> OneByOne | DynamicBatcher | SequenceBatcher:
    config = servable.config
    if config.sequence_batching is not None:
        return SequenceBatcher(
            config, config.sequence_batching, fail=servable.fail, clock=servable.clock, limits=limits
        )
    if config.dynamic_batching is not None:
        return DynamicBatcher(
            config,
            config.dynamic_batching,
            replicas,
            fail=servable.fail,
            clock=servable.clock,
            max_wait_s=limits.max_wait_s,
        )
    return OneByOne(replicas, fail=servable.fail, max_wait_s=limits.max_wait_s)
