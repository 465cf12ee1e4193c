"""What a placement costs: bandwidth of the ring over several machines, time of an all-reduce, time of a step.

Owns the arithmetic of placements. A placement here is a list of `Part`: a machine's wiring and the devices taken on it.
Knows nothing of what is free or whose turn it is; `place` and `aggregate` ask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from millpond.jobs.scheduling.rings import WiringModel, devices_of
from millpond.jobs.scheduling.types import StepModel


class Part(NamedTuple):
    """The devices of a job on one machine."""

    model: WiringModel
    mask: int


@dataclass(frozen=True, slots=True)
class RingTraffic:
    """How many of a ring's edges run where."""

    direct: int
    host: int
    network: int


def bus_gbps(parts: Sequence[Part]) -> float:
    """Bus bandwidth of the ring over all parts: inside one machine its rings, else the weakest machine's way out."""
    if len(parts) == 1:
        return parts[0].model.ring(parts[0].mask).gbps
    return min([part.model.way_out_gbps(part.mask) for part in parts])


def allreduce_s(parts: Sequence[Part], size_bytes: float) -> float:
    """Time of one all-reduce of `size_bytes` over a ring through all parts."""
    ranks = sum([part.mask.bit_count() for part in parts])
    if ranks <= 1 or size_bytes <= 0:
        return 0.0
    wiring = parts[0].model.wiring
    steps = 2 * (ranks - 1)
    hops = steps * wiring.hop_s if len(parts) == 1 else 2 * (ranks - len(parts)) * wiring.hop_s
    if len(parts) > 1:
        hops += 2 * len(parts) * wiring.network_hop_s
    return steps / ranks * size_bytes / (bus_gbps(parts) * 1e9) + hops


def step_s(parts: Sequence[Part], step: StepModel) -> float:
    """Time of one training step on this placement."""
    return step.compute_s + (1.0 - step.overlap) * allreduce_s(parts, step.gradient_bytes)


def ring_traffic(parts: Sequence[Part]) -> RingTraffic:
    """Counts the edges of the job's ring by the kind of wire they use."""
    direct = host = 0
    for part in parts:
        ring = part.model.ring(part.mask) if len(parts) == 1 else part.model.path(part.mask)
        size = part.mask.bit_count()
        edges = size if len(parts) == 1 else size - 1
        edges = 0 if size == 1 else edges
        direct += min(ring.direct, edges)
        host += edges - min(ring.direct, edges)
    return RingTraffic(direct, host, len(parts) if len(parts) > 1 else 0)


def device_order(part: Part, *, alone: bool) -> tuple[int, ...]:
    """Devices of a part so that neighbours in the order are neighbours on the wire."""
    if part.mask.bit_count() <= 1:
        return devices_of(part.mask)
    return part.model.ring(part.mask).order if alone else part.model.path(part.mask).order
