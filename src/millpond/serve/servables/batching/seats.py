"""`Sequence` and `Seats`: the sequences that are open, and which place of which replica each has. Pure.

A sequence keeps its place until it ends; sequences without a place wait in line for one.
"""

from __future__ import annotations

from collections import deque

from millpond.serve.servables.calls import Call
from millpond.serve.servables.replicas import Replica
from millpond.serve.servables.tensors import Tensor


class Sequence:
    """One open sequence."""

    __slots__ = ("calls", "has_begun", "is_ending", "key", "last_ns", "replica", "running", "slot", "states")

    def __init__(self, key: int | str) -> None:
        self.key = key
        self.calls: deque[Call] = deque()
        self.running: Call | None = None
        self.has_begun = False  # a request was executed
        self.is_ending = False  # no more requests will come
        self.replica: Replica | None = None
        self.slot = -1
        self.states: dict[str, Tensor] = {}
        self.last_ns = 0

    def head(self) -> Call | None:
        """The request to execute next; None when there is none or one is being executed."""
        if self.running is not None:
            return None
        while self.calls and self.calls[0].done:
            self.calls.popleft()
        return self.calls[0] if self.calls else None

    def is_quiet(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return self.running is None and self.head() is None


class Seats:
    """The places of all replicas.

    Args:
        size: Places of each replica.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._slots: dict[Replica, list[Sequence | None]] = {}
        self._line: deque[Sequence] = deque()

    def add_replica(self, replica: Replica) -> None:
        """Gives a replica its places."""
        self._slots[replica] = [None] * self._size

    def of(self, replica: Replica) -> list[Sequence | None]:
        """A replica's places, as many as there are up to the last that is taken."""
        slots = self._slots[replica]
        count = len(slots)
        while count and slots[count - 1] is None:
            count -= 1
        return slots[:count]

    def replicas(self) -> list[Replica]:
        """All that have places."""
        return list(self._slots)

    def seat(self, sequence: Sequence) -> bool:
        """Gives a sequence a place on the emptiest replica, or puts it in line."""
        replica = max(self._slots, key=lambda one: (not one.is_down, self._slots[one].count(None)))
        slots = self._slots[replica]
        if None not in slots:
            self._line.append(sequence)
            return False
        sequence.replica = replica
        sequence.slot = slots.index(None)
        slots[sequence.slot] = sequence
        return True

    def leave(self, sequence: Sequence) -> Sequence | None:
        """Frees a sequence's place and returns who gets it now."""
        replica = sequence.replica
        if replica is None:
            if sequence in self._line:
                self._line.remove(sequence)
            return None
        slots = self._slots[replica]
        slots[sequence.slot] = None
        sequence.replica = None
        if not self._line:
            return None
        heir = self._line.popleft()
        heir.replica, heir.slot = replica, sequence.slot
        slots[sequence.slot] = heir
        return heir
