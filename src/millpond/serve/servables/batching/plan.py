"""Which waiting calls make the next batch, or how long it is worth to wait for more. Pure.

The rules are those of Triton's dynamic batcher: calls are merged in order; a preferred size is taken as soon as it is
reached; otherwise the oldest call's delay decides, unless the batch cannot grow because the next call is too large or
has other shapes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from millpond.serve.servables.calls import Call
from millpond.serve.servables.config import ServableConfig
from millpond.serve.servables.messages import InferRequest


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """What to do with the calls that wait.

    Attributes:
        count: How many of the first calls to execute now.
        wait_until_ns: When the calls must go, if `count` is 0; 0 when nothing waits.
        enough_rows: Deciding anew is no use before so many rows wait.
    """

    count: int
    wait_until_ns: int = 0
    enough_rows: int = 0


@dataclass(frozen=True, slots=True)
class BatchRules:
    """Sizes and the delay.

    Attributes:
        max_rows: The largest batch.
        preferred: Sizes that are executed at once; empty means the largest batch.
        delay_ns: How long the oldest call may wait for more.
    """

    max_rows: int
    preferred: frozenset[int] = frozenset()
    delay_ns: int = 0

    def plan(self, calls: Iterable[Call], now_ns: int, lead_ns: int = 0) -> BatchPlan:
        """Decides about calls in the order in which they are to run; those who wait may go `lead_ns` early."""
        largest = max(self.preferred, default=self.max_rows)
        rows = count = best = oldest_ns = 0
        is_full = False
        key: object = None
        for call in calls:
            if not count:
                key = call.shape_key
                oldest_ns = call.accepted_ns
            else:
                if rows + call.rows > largest and not best:
                    best = count
                if rows + call.rows > self.max_rows or call.shape_key != key:
                    is_full = True
                    break
            rows += call.rows
            count += 1
            oldest_ns = min(oldest_ns, call.accepted_ns)
            if rows in self.preferred:
                best = count
        is_late = now_ns - oldest_ns >= self.delay_ns - lead_ns
        if best and (not is_late or not self.delay_ns):
            return BatchPlan(best)
        if not count or is_full or rows >= largest or is_late:
            return BatchPlan(count)
        enough = min((size for size in self.preferred if size > rows), default=self.max_rows)
        return BatchPlan(0, oldest_ns + self.delay_ns, enough)

    def plan_whole(self, rows: int, oldest_ns: int, now_ns: int, lead_ns: int = 0) -> bool:
        """Whether calls that are one batch, of no more than its largest size, go now; `plan` without a look at each."""
        return rows >= self.max_rows or now_ns - oldest_ns >= self.delay_ns - lead_ns


class ShapeKeys:
    """Tells which requests can be merged: their inputs are the same ones and have the same shapes.

    Args:
        config: Inputs that are ragged may differ in shape; inputs whose shape is fixed need no look.
    """

    def __init__(self, config: ServableConfig) -> None:
        self._names = tuple(
            spec.name for spec in config.inputs if spec.optional or (-1 in spec.dims and not spec.ragged)
        )
        self._ragged = frozenset(spec.name for spec in config.inputs if spec.ragged)

    def of(self, request: InferRequest) -> object:
        """A value that is equal for requests that can be merged."""
        if not self._names and not request.method:
            return None
        inputs = request.inputs
        shapes = tuple(
            None if name not in inputs else () if name in self._ragged else inputs[name].array.shape[1:]
            for name in self._names
        )
        return (request.method, shapes)
