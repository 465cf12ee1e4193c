"""`Scheduler`: what a servable needs of whatever decides when its calls run.

A scheduler gets calls that were checked, keeps those that must wait, and either gives them to replicas that ask
(`replicas.Source`) or, for an ensemble, turns them into calls of other servables. One event loop; nothing is locked.
"""

from __future__ import annotations

from typing import Protocol

from millpond.serve.servables.calls import Call
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.messages import InferRequest


class Scheduler(Protocol):
    """Decides when calls run."""

    @property
    def num_waiting(self) -> int:
        """Calls that wait to be executed."""

    def submit(self, call: Call) -> None:
        """Takes a call.

        Raises:
            ServableError: It is refused: the queue is full, or the call does not fit the open sequences.
        """

    def discard(self, call: Call) -> bool:
        """Forgets a call that waits; False when it is not waiting any more."""

    def fail_waiting(self, error: ServableError) -> None:
        """Answers all that wait with an error."""

    def poke(self) -> None:
        """A replica may be free again."""

    def owns(self, request: InferRequest) -> bool:
        """Whether the request belongs to a sequence that is open here."""

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and no sequence is open."""

    def close(self) -> None:
        """Stops its timers."""
