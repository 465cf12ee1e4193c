"""`Parting`: lets clients that all come back together come in two groups, where the model does more then. Pure.

Clients that were all answered by one batch leave the model idle until they have asked again. In two groups one asks
while the other's batch runs: that is less work where a batch costs much whatever its size, and more where its cost is
its rows. So when all have come together a few times a batch goes with half of them, and what their rows cost then,
against what they cost before and how long the model was idle, decides until it is tried again: soon, because a model
may have been cold or a machine busy, and later each time that the same is found. Owned by a dynamic batcher with one
instance; `gathering` is the way back.
"""

from __future__ import annotations

_FEWEST = 4  # rows that are worth two batches
_TOGETHER = 3  # batches in a row before a try
_PAYS = 0.95  # of the time for as many rows
_LOSES = 1.25  # which is clear at the first look
_LOOKS = 4  # otherwise
_MOST_IDLE = 0.3  # part of the time that counts: what a row costs in half a batch must not be much more
_WEIGHT = 0.3  # of the newest batch in a mean
_AGAIN = 100  # delays after which it is tried anew
_LONGER = 4  # times that, where it was found again
_MOST_AGAIN_APART = 4_000
_MOST_AGAIN = 64_000  # where groups were no use


class Parting:
    """Decides when a batch need not wait for all who may still come.

    Args:
        delay_ns: How long a batch may wait.

    Attributes:
        goal: With so many rows the next batch goes; 0 when it waits for more.
    """

    def __init__(self, delay_ns: int) -> None:
        self.goal = 0
        self._delay_ns = delay_ns
        self._again = _AGAIN
        self._again_ns = 0  # until then what was found holds
        self._was_of_use: bool | None = None  # what the try before the last one found
        self._has_doubted = False  # groups were asked to come together since it does not hold any more
        self._row_ns = 0.0  # of batches with all
        self._idle = 0.0  # part of the time, after them
        self._cost = 0.0  # of a row in batches with half of them that another followed at once, by that of the others
        self._num_looks = 0  # at that
        self._num_begun = 0  # batches since the try
        self._half = 0  # of the rows of the last batch with all
        self._num_together = 0  # batches in a row that nobody waited for the end of
        self._rows = 0  # of the last batch
        self._began_ns = self._ended_ns = 0
        self._is_running = False
        self._is_try = False  # the next batch is one, if it goes with fewer

    def keeps(self, now_ns: int) -> bool:
        """Whether groups should not come together: they are known to be better so, or that is being found out."""
        if now_ns < self._again_ns and self._num_looks < _LOOKS and self._num_begun <= 2 * _LOOKS:
            return not self._num_looks or self._share <= _LOSES
        return self._pays(now_ns)

    def ended(self, num_waiting: int, now_ns: int) -> bool:
        """The instance is free. Returns whether groups should come together, because that was better."""
        if not self._is_running:
            return False
        self._is_running, self._ended_ns = False, now_ns
        if num_waiting:
            self._num_together = 0
            if not self._is_half or not self._num_looks:
                return False
            if now_ns >= self._again_ns and not self._has_doubted:
                self._has_doubted = True
                return True
            return self._share > (1.0 if self._num_looks >= _LOOKS else _LOSES)
        self._num_together += 1
        if self._num_together > 1 or not self._is_half:
            self._half = self._rows // 2
            row_ns = (now_ns - self._began_ns) / max(self._rows, 1)
            # What the first of them cost says least: of a model that was never called, or of other clients' batches.
            self._row_ns = row_ns if self._num_together <= 2 else _mean(self._row_ns, row_ns)
            self._is_try = now_ns >= self._again_ns and self._num_together >= _TOGETHER
            if self._rows >= _FEWEST and (self._is_try or self._pays(now_ns)):
                self.goal = self._half
        return False

    def begun(self, rows: int, now_ns: int) -> None:
        """A batch begins."""
        taken_ns = max(now_ns - self._began_ns, 1)
        if self._num_together:
            idle_ns = now_ns - self._ended_ns
            if idle_ns > 2 * self._delay_ns:  # not clients who were answered and asked again
                self._num_together = 0
            elif self.goal:
                if self._is_try and rows < self._rows:
                    self._begin_try(now_ns)
            else:
                self._idle = _mean(self._idle, min(idle_ns / taken_ns, _MOST_IDLE))
        elif self._is_half and self._num_looks < _LOOKS and now_ns < self._again_ns:
            cost = taken_ns / max(self._rows * self._row_ns, 1.0)
            self._cost = _mean(self._cost, cost) if self._num_looks else cost
            self._num_looks += 1
        self._num_begun += 1
        self._rows, self._began_ns = rows, now_ns
        self._is_running, self.goal = True, 0

    def _pays(self, now_ns: int) -> bool:
        return now_ns < self._again_ns and self._num_looks > 0 and self._share <= _PAYS

    @property
    def _share(self) -> float:
        """The time that two groups take of the time of one."""
        return self._cost * (1.0 - self._idle)

    @property
    def _is_half(self) -> bool:
        return self._half <= 2 * self._rows <= 3 * self._half

    def _begin_try(self, now_ns: int) -> None:
        """What was found before is forgotten."""
        if self._num_looks:
            is_of_use = self._share <= _PAYS
            most = _MOST_AGAIN_APART if is_of_use else _MOST_AGAIN
            self._again = min(_LONGER * self._again, most) if is_of_use is self._was_of_use else _AGAIN
            self._was_of_use = is_of_use
        self._again_ns = now_ns + self._again * self._delay_ns
        self._num_looks = self._num_begun = 0
        self._has_doubted = False


def _mean(mean: float, newest: float) -> float:
    return mean + _WEIGHT * (newest - mean) if mean else newest
