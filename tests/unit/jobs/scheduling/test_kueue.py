"""Kueue's published vectors for topology-aware scheduling, asked of the whole scheduler: as listed, or no worse.

`test_spread` holds the arithmetic to the same vectors. Here the domains are machines (and racks, where a vector has two
levels), and the answer is what is reserved. It may differ where it costs nothing: the same number of machines or fewer,
in as few racks, and a ring that is as fast.
"""

from __future__ import annotations

import pytest

from millpond.api.topology import plain_wiring
from millpond.jobs.scheduling.cost import Part, bus_gbps
from millpond.jobs.scheduling.rings import WiringModel
from millpond.jobs.scheduling.types import NodeJoined, NodeSpec
from tests.support.gangs import Bench, workers

Domains = list[list[int]]


def reserved(domains: Domains, ask: int, slice_size: int = 1) -> Domains:
    """Slots taken by machine after a gang of `ask` slots in slices was submitted."""
    bench = Bench()
    for rack, leaves in enumerate(domains):
        for leaf, slots in enumerate(leaves):
            bench.tell(NodeJoined(NodeSpec(f"{rack}-{leaf}", plain_wiring(slots), rack=f"r{rack}", cpus=64.0)))
    bench.submit(workers("job", ask // slice_size, slice_size))
    bench.step()
    taken = [[0] * len(leaves) for leaves in domains]
    for placed in bench.job("job").placement.roles["worker"]:  # type: ignore[union-attr]
        rack, leaf = map(int, placed.node.split("-"))
        taken[rack][leaf] += len(placed.device_ids)
    return taken


def ring_gbps(domains: Domains, taken: Domains) -> float:
    slots = [(slots, used) for leaves, useds in zip(domains, taken, strict=True)
             for slots, used in zip(leaves, useds, strict=True) if used]  # fmt: skip
    return bus_gbps([Part(WiringModel(plain_wiring(size)), (1 << used) - 1) for size, used in slots])


@pytest.mark.parametrize(
    ("domains", "ask", "slice_size", "kueue"),
    [
        ([[3, 3, 2, 1]], 7, 1, [[3, 3, 0, 1]]),
        ([[6, 5, 4, 3, 2]], 12, 2, [[6, 0, 4, 0, 2]]),
        ([[20, 10], [15, 15]], 20, 1, [[20, 0], [0, 0]]),
        ([[15, 13, 10]], 23, 1, [[12, 11, 0]]),
        ([[15], [15], [15, 15]], 25, 5, [[0], [0], [15, 10]]),
        ([[20, 10], [15, 15]], 22, 1, [[0, 0], [11, 11]]),
        ([[10, 5], [5, 5, 5]], 15, 1, [[0, 0], [5, 5, 5]]),
    ],
)
def test_a_vector_of_kueue_is_answered_as_listed_or_no_worse(
    domains: Domains, ask: int, slice_size: int, kueue: Domains
) -> None:
    ours = reserved(domains, ask, slice_size)
    assert sum(map(sum, ours)) == ask
    assert _machines(ours) <= _machines(kueue)
    assert _racks(ours) <= _racks(kueue)
    assert ring_gbps(domains, ours) >= ring_gbps(domains, kueue)


def _machines(taken: Domains) -> int:
    return sum(1 for leaves in taken for used in leaves if used)


def _racks(taken: Domains) -> int:
    return sum(1 for leaves in taken if any(leaves))


@pytest.mark.parametrize(
    ("domains", "ask", "slice_size", "answer"),
    [
        ([[3, 3, 2, 1]], 7, 1, [[3, 3, 0, 1]]),
        ([[6, 5, 4, 3, 2]], 12, 2, [[6, 0, 4, 0, 2]]),
        ([[20, 10], [15, 15]], 20, 1, [[20, 0], [0, 0]]),
    ],
)
def test_best_fit_is_answered_machine_by_machine(domains: Domains, ask: int, slice_size: int, answer: Domains) -> None:
    assert reserved(domains, ask, slice_size) == answer
