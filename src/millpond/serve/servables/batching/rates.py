"""`RateLimiter`: instances execute only while the resources that their groups name are free.

One for all servables. A group says how much of each resource an execution takes; who waits is let in by how often it
was let in before, weighted by its group's priority, and nobody overtakes who is next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from millpond.serve.servables.config import InstanceGroup
from millpond.serve.servables.errors import ServableError

_Resource = tuple[str, int]  # name and device; device -1 is all devices together


class RateLimiter:
    """The resources.

    Args:
        amounts: How much there is of each; what is not named is as much as the neediest group asks for.
    """

    def __init__(self, amounts: Mapping[str, int]) -> None:
        self._amounts = dict(amounts)
        self._used: dict[_Resource, int] = {}
        self._gates: list[RateGate] = []
        self._waiting: list[tuple[RateGate, asyncio.Future[None]]] = []

    def gate(self, group: InstanceGroup) -> RateGate:
        """Makes the gate of one instance.

        Raises:
            ServableError: The group asks for more than there is.
        """
        for name, count in group.resources.items():
            if name in self._amounts and count > self._amounts[name]:
                raise ServableError(
                    "invalid_argument",
                    f'Resource count for "{name}" is limited to {self._amounts[name]} which will prevent scheduling of '
                    f"one or more model instances, the minimum required count is {count}",
                )
        device = group.devices[0] if group.devices else 0
        needs = {
            (name, -1 if name in group.global_resources else device): count for name, count in group.resources.items()
        }
        made = RateGate(self, needs, max(1, group.priority))
        made.num_entered = min((gate.num_entered * gate.weight for gate in self._gates), default=0) // made.weight
        self._gates.append(made)
        return made

    def remove(self, gate: RateGate) -> None:
        """Forgets the gate of an instance that is gone."""
        self._gates.remove(gate)

    def try_enter(self, gate: RateGate) -> bool:
        """Takes the resources if they are free and nobody else is next."""
        if self._waiting or not self._fits(gate):
            return False
        self._take(gate)
        return True

    async def wait(self, gate: RateGate) -> None:
        """Waits for the resources."""
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (gate, granted)
        self._waiting.append(entry)
        self._let_in()
        try:
            await granted
        except asyncio.CancelledError:
            if entry in self._waiting:
                self._waiting.remove(entry)
                self._let_in()
            elif not granted.cancelled():
                self.give_back(gate)
            raise

    def give_back(self, gate: RateGate) -> None:
        """Frees the resources of one execution."""
        for resource, count in gate.needs.items():
            self._used[resource] -= count
        self._let_in()

    def _let_in(self) -> None:
        while self._waiting:
            entry = min(self._waiting, key=lambda one: one[0].num_entered * one[0].weight)
            gate, granted = entry
            if granted.cancelled():
                self._waiting.remove(entry)
                continue
            if not self._fits(gate):
                return
            self._waiting.remove(entry)
            self._take(gate)
            granted.set_result(None)

    def _fits(self, gate: RateGate) -> bool:
        return all(
            self._used.get(resource, 0) + count <= self._amount(resource) for resource, count in gate.needs.items()
        )

    def _amount(self, resource: _Resource) -> int:
        amount = self._amounts.get(resource[0])
        return amount if amount is not None else max((gate.needs.get(resource, 0) for gate in self._gates), default=0)

    def _take(self, gate: RateGate) -> None:
        gate.num_entered += 1
        for resource, count in gate.needs.items():
            self._used[resource] = self._used.get(resource, 0) + count


class RateGate:
    """One instance's side of the limiter."""

    def __init__(self, limiter: RateLimiter, needs: dict[_Resource, int], weight: int) -> None:
        self.needs = needs
        self.weight = weight
        self.num_entered = 0
        self._limiter = limiter

    async def enter(self) -> None:
        """Waits until an execution may begin."""
        if not self._limiter.try_enter(self):
            await self._limiter.wait(self)

    def leave(self) -> None:
        """An execution is over."""
        self._limiter.give_back(self)

    def close(self) -> None:
        """The instance is gone."""
        self._limiter.remove(self)
