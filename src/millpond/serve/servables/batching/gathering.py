"""`Gathering`: brings clients that wait for each other's batches back into one. Pure.

Clients that all wait for their answers come back together when they were answered together. Once something has split
them, each half waits while the other's batch runs, and for ever: a model whose batches cost much the same whatever
their size then does half the work. So now and then, when a batch ends and less than a whole one waits, the next one
waits for those who were just answered, no longer than the queue delay. That costs at most a twentieth of the time, soon
far less where nobody comes or the work did not get more for it. Owned by a dynamic batcher with one instance.
"""

from __future__ import annotations

_EVERY = 20  # delays between two tries
_MOST_EVERY = 64 * _EVERY
_GROWN = 1.25  # of the rows there were: somebody came
_PAYS = 1.1  # of the rows a second of batches that do not wait
_WEIGHT = 0.2  # of the newest batch in the mean


class Gathering:
    """Decides when a batch that could begin waits for the clients of the last one.

    Args:
        max_rows: Of a batch.
        delay_ns: How long it may wait.

    Attributes:
        until_ns: When it begins at the latest; 0 while none waits.
        goal: How many rows are enough.
    """

    def __init__(self, max_rows: int, delay_ns: int) -> None:
        self.until_ns = 0
        self.goal = 0
        self._max_rows = max_rows
        self._delay_ns = delay_ns
        self._every = _EVERY
        self._next_ns = 0
        self._first_rows = 0  # when it began to wait
        self._has_grown = False  # since then
        self._last_rows = 0  # of the batch before
        self._began_ns = 0
        self._was_idle = True  # since that batch has ended
        self._was_gathered = False  # that batch, and somebody came
        self._rate = 0.0  # rows a nanosecond, of batches that were not whole and that another followed at once

    def holds(self, rows: int, now_ns: int, *, can_grow: bool = True) -> bool:
        """Whether so many rows, which could begin now, wait for more; never where others could not join them."""
        if self.until_ns:
            if can_grow and rows < self.goal and now_ns < self.until_ns:
                return True
            self.until_ns = 0
            self._has_grown = rows >= _GROWN * self._first_rows
            self._rest(now_ns, self._every if self._has_grown else 2 * self._every)
            return False
        if self._was_idle or not can_grow or rows >= self._max_rows or now_ns < self._next_ns:
            return False
        self.until_ns = now_ns + self._delay_ns
        self.goal = min(self._max_rows, rows + self._last_rows)
        self._first_rows = rows
        self._count(now_ns)
        self._was_idle = True
        return True

    def begun(self, rows: int, now_ns: int) -> None:
        """A batch begins."""
        self._count(now_ns)
        self._last_rows, self._began_ns, self._was_idle = rows, now_ns, False
        self._was_gathered, self._has_grown = self._has_grown, False

    def idle(self) -> None:
        """Nothing can begin although the instance is free."""
        self._was_idle = True

    def soon(self) -> None:
        """The next try need not wait: it is known that it pays."""
        self._next_ns = 0

    def _count(self, now_ns: int) -> None:
        """The time of the last batch is over, as far as another waits for it."""
        rate = self._last_rows / max(now_ns - self._began_ns, 1)
        if self._was_gathered:
            self._rest(now_ns, _EVERY if rate >= _PAYS * self._rate else 4 * self._every)
        elif not self._was_idle and self._last_rows < self._max_rows:
            self._rate += _WEIGHT * (rate - self._rate) if self._rate else rate
        self._was_gathered = False

    def _rest(self, now_ns: int, every: int) -> None:
        self._every = min(every, _MOST_EVERY)
        self._next_ns = now_ns + self._every * self._delay_ns
