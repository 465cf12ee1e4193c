"""How many slots to take from each of several domains: tightest fit, least free first, balanced.

Pure arithmetic on capacities, with the vectors Kueue publishes as tests. A domain may be a node, a rack or a block.
Answers keep the order of the capacities and give 0 where nothing is taken; None means that the ask does not fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heapreplace
from itertools import combinations
from zlib import crc32


def best_fit(capacities: Sequence[int], ask: int, slice_size: int = 1) -> list[int] | None:
    """Most free first, and the last domain the tightest that holds the rest: few domains, little left over."""
    slots = [capacity // slice_size for capacity in capacities]
    left = -(-ask // slice_size)
    if sum(slots) < left:
        return None
    taken = [0] * len(slots)
    order = sorted(range(len(slots)), key=lambda index: (-slots[index], capacities[index], index))
    for rank, index in enumerate(order):
        if left <= 0:
            break
        if slots[index] >= left:
            tightest = min(
                (other for other in order[rank:] if slots[other] >= left),
                key=lambda other: (slots[other], capacities[other], other),
            )
            taken[tightest] = left
            break
        taken[index] = slots[index]
        left -= slots[index]
    return [count * slice_size for count in taken]


def least_free(capacities: Sequence[int], ask: int, slice_size: int = 1) -> list[int] | None:
    """Least free first: uses up the crumbs and keeps large domains whole."""
    slots = [capacity // slice_size for capacity in capacities]
    left = -(-ask // slice_size)
    if sum(slots) < left:
        return None
    taken = [0] * len(slots)
    for index in sorted(range(len(slots)), key=lambda index: (slots[index], capacities[index], index)):
        taken[index] = min(slots[index], left)
        left -= taken[index]
    return [count * slice_size for count in taken]


def even_spread(capacities: Sequence[int], ask: int) -> list[int] | None:
    """The fewest domains, and equal shares on them: what a ring over network cards likes best."""
    order = sorted(range(len(capacities)), key=lambda index: (-capacities[index], index))
    total = 0
    for count, index in enumerate(order, start=1):
        total += capacities[index]
        if total < ask:
            continue
        taken = [0] * len(capacities)
        left = ask
        for rank, chosen in enumerate(sorted(order[:count], key=lambda index: (capacities[index], index))):
            taken[chosen] = min(capacities[chosen], left // (count - rank))
            left -= taken[chosen]
        return taken
    return None


def emptiest(capacities: Sequence[int], ask: int) -> list[int] | None:
    """One slot after the other from the domain with the most left: what spreading pods one by one comes to."""
    if sum(capacities) < ask:
        return None
    heap = [(-capacity, index) for index, capacity in enumerate(capacities)]
    heapify(heap)
    taken = [0] * len(capacities)
    for _ in range(ask):
        left, index = heap[0]
        taken[index] += 1
        heapreplace(heap, (left + 1, index))
    return taken


def anywhere(capacities: Sequence[int], ask: int, seed: str) -> list[int] | None:
    """Each slot from any domain that has one left, as dice fall that `seed` names: what no rule at all comes to."""
    if sum(capacities) < ask:
        return None
    dice = crc32(seed.encode())
    taken = [0] * len(capacities)
    roomy = [index for index, capacity in enumerate(capacities) if capacity]
    for _ in range(ask):
        dice = (6364136223846793005 * dice + 1442695040888963407) % (1 << 64)  # Knuth's MMIX generator
        at = (dice >> 33) % len(roomy)
        taken[roomy[at]] += 1
        if taken[roomy[at]] == capacities[roomy[at]]:
            roomy.pop(at)
    return taken


def balanced(capacities: Sequence[Sequence[int]], ask: int, slice_size: int = 1) -> list[list[int]] | None:
    """Two levels: one upper domain if it can, the fewest leaves in it, and the least loaded leaf as full as can be.

    Among upper domains the one with the highest least load wins, then the most even one, then the fewest leaves.
    """
    best: tuple[tuple[int, int, int, int], int, list[int]] | None = None
    for upper, leaves in enumerate(capacities):
        slots = [leaf // slice_size for leaf in leaves]
        shares = _balance(slots, -(-ask // slice_size))
        if shares is None:
            continue
        used = [share for share in shares if share]
        key = (min(used), min(used) - max(used), -len(used), -upper)
        if best is None or key > best[0]:
            best = (key, upper, shares)
    if best is None:
        return None
    answer = [[0] * len(leaves) for leaves in capacities]
    answer[best[1]] = [share * slice_size for share in best[2]]
    return answer


def _balance(slots: Sequence[int], ask: int) -> list[int] | None:
    """The fewest leaves that hold the ask; among them the highest least share, the rest to the largest leaves."""
    ranked = sorted(slots, reverse=True)
    count = next((n for n in range(1, len(slots) + 1) if sum(ranked[:n]) >= ask), None)
    if count is None:
        return None
    best: tuple[tuple[int, int, tuple[int, ...]], list[int]] | None = None
    for chosen in combinations(range(len(slots)), count) if len(slots) <= 12 else [tuple(_largest(slots, count))]:
        if sum(slots[index] for index in chosen) < ask:
            continue
        floor = min(ask // count, *(slots[index] for index in chosen))
        shares = [0] * len(slots)
        left = ask - floor * count
        for index in sorted(chosen, key=lambda index: (-slots[index], index)):
            extra = min(slots[index] - floor, left)
            shares[index] = floor + extra
            left -= extra
        spare = sum(slots[index] for index in chosen) - ask
        key = (floor, -spare, tuple(-index for index in chosen))
        if best is None or key > best[0]:
            best = (key, shares)
    return best[1] if best else None


def _largest(slots: Sequence[int], count: int) -> list[int]:
    return sorted(range(len(slots)), key=lambda index: (-slots[index], index))[:count]
