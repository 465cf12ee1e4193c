"""What the benches of protocols have in common: whose turn it is, processor time, and how sure a difference is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def turned(ways: Sequence[T], number: int) -> list[T]:
    """The ways in the order of a round: another one is first each time."""
    first = number % len(ways)
    return [*ways[first:], *ways[:first]]


def processor_s(pid: int) -> float:
    """Seconds that a process's threads ran; the kernel counts them finer than in ticks here."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9
