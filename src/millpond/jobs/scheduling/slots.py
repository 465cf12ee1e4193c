"""From the devices a ring takes to its replicas: who gets which of them, in ring order, and what that holds.

Owns the order of ranks: neighbours in a role are neighbours on the wire. Knows nothing of what is free or of choice.
Called by `place`, which has chosen the devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter

from millpond.jobs.scheduling.cells import Grain, NodeState, milli
from millpond.jobs.scheduling.cost import Part, device_order
from millpond.jobs.scheduling.rings import mask_of
from millpond.jobs.scheduling.types import GangRequest, Placement, ResourceRequest, RoleRequest

Share = tuple[int, int, int]  # node, replicas there, mask of their devices
Slot = tuple[int, tuple[int, ...]]  # node, devices of one replica


def slots_of(shares: Sequence[Share], parts: Sequence[Part], width: int) -> list[Slot]:
    """One slot a replica of `width` devices, around the ring."""
    slots: list[Slot] = []
    for (node, _, _), part in zip(shares, parts, strict=True):
        order = device_order(part, alone=len(parts) == 1)
        slots += [(node, order[at : at + width]) for at in range(0, len(order), width)]
    return slots


def grain_of(share: Share, need: ResourceRequest) -> Grain:
    """What the replicas of one role take on one machine."""
    node, replicas, mask = share
    return Grain(node, mask, milli(need.cpus) * replicas, need.memory_bytes * replicas)


def grains_of(role: RoleRequest, slots: Sequence[Slot]) -> list[Grain]:
    """What a role's replicas take, by machine; slots of one machine stand together."""
    grains = []
    for node, group in groupby(slots, key=itemgetter(0)):
        masks = [mask_of(devices) for _, devices in group]
        grains.append(grain_of((node, len(masks), sum(masks)), role.resources))
    return grains


def name_slots(
    nodes: Sequence[NodeState], request: GangRequest, role: RoleRequest, slots: Sequence[Slot]
) -> tuple[Placement, ...]:
    """The replicas of a role; of an aggregated role, one group a machine with its ranks in a row."""
    if request.aggregation is None or request.aggregation.role != role.name:
        return tuple(Placement(nodes[node].spec.name, ids, rank) for rank, (node, ids) in enumerate(slots))
    named, rank = [], 0
    for node, group in groupby(slots, key=itemgetter(0)):
        joined = tuple(device for _, ids in group for device in ids)
        named.append(Placement(nodes[node].spec.name, joined, rank, len(joined)))
        rank += len(joined)
    return tuple(named)
