"""`PolicyQueue`: calls that wait, by priority, with the limits and timeouts of their level. Pure: told what time it is.

Within a level calls keep their order; those whose timeout has passed are either handed back to be refused or, where the
level's policy says so, wait behind the level's others. A call that is over (cancelled) is skipped wherever it is.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator

from millpond.serve.servables.calls import Call
from millpond.serve.servables.config import DynamicBatching, QueuePolicy


class _Level:
    __slots__ = ("calls", "delayed", "policy", "size")

    def __init__(self, policy: QueuePolicy) -> None:
        self.policy = policy
        self.calls: deque[Call] = deque()
        self.delayed: deque[Call] = deque()
        self.size = 0


class PolicyQueue:
    """Waiting calls.

    Args:
        batching: The levels and their policies.
        max_wait_ns: Longest wait, whatever the policies say.
    """

    def __init__(self, batching: DynamicBatching, *, max_wait_ns: int) -> None:
        count = max(1, batching.priority_levels)
        policies = batching.level_policies
        self._levels = [_Level(policies.get(number, batching.queue_policy)) for number in range(1, count + 1)]
        self._default = min(max(1, batching.default_priority), count)
        self._max_wait_ns = max_wait_ns
        self._deadlines: list[tuple[int, int, Call]] = []
        self._num_added = 0
        self._first = self._levels[0]
        self._is_plain = count == 1
        self._is_mixed = False  # since it was empty
        self._key: object = None
        self.size = 0
        self.rows = 0

    def level_of(self, call: Call) -> int:
        """The level a call belongs to; one that does not exist is the default one."""
        asked = call.request.priority
        return asked if 1 <= asked <= len(self._levels) else self._default

    def add(self, call: Call, now_ns: int) -> bool:
        """Takes a call; False when its level is full."""
        level = self._first if self._is_plain else self._levels[self.level_of(call) - 1]
        policy = level.policy
        if policy.max_size and level.size >= policy.max_size:
            return False
        timeout_us = policy.default_timeout_us
        asked_us = call.request.timeout_us
        if policy.allow_override and asked_us > 0 and (not timeout_us or asked_us < timeout_us):
            timeout_us = asked_us
        wait_ns = min(timeout_us * 1000, self._max_wait_ns) if timeout_us else self._max_wait_ns
        call.deadline_ns = now_ns + wait_ns
        self._num_added += 1
        if timeout_us:
            heapq.heappush(self._deadlines, (call.deadline_ns, self._num_added, call))
        if not self.size:
            self._is_mixed, self._key = False, call.shape_key
        elif call.shape_key != self._key:
            self._is_mixed = True
        level.calls.append(call)
        level.size += 1
        self.size += 1
        self.rows += call.rows
        if timeout_us and len(self._deadlines) > 2 * self.size + 64:
            self._deadlines = [entry for entry in self._deadlines if _waits(entry[2])]
            heapq.heapify(self._deadlines)
        return True

    def forget(self, call: Call) -> None:
        """Counts a waiting call that is over as gone; it is skipped from now on."""
        level = self._levels[self.level_of(call) - 1]
        level.size -= 1
        self.size -= 1
        self.rows -= call.rows
        if len(level.calls) + len(level.delayed) > 2 * level.size + 64:
            # Those who give up while every instance is busy must not pile up behind the first in line.
            level.calls = deque(other for other in level.calls if _waits(other) and not other.is_delayed)
            level.delayed = deque(other for other in level.delayed if _waits(other))

    def expire(self, now_ns: int) -> list[Call]:
        """Takes out the calls that waited too long and are to be refused; delays those whose policy says so."""
        refused = []
        while self._deadlines and self._deadlines[0][0] <= now_ns:
            call = heapq.heappop(self._deadlines)[2]
            if not _waits(call):
                continue
            level = self._levels[self.level_of(call) - 1]
            if level.policy.on_timeout == "delay" and not call.is_delayed:
                call.is_delayed = True
                level.delayed.append(call)
            else:
                self.forget(call)
                refused.append(call)
        return refused

    def expire_oldest(self, now_ns: int) -> list[Call]:
        """Takes out the calls that reached the longest wait there is."""
        refused = []
        for level in self._levels:
            for call in (*level.calls, *level.delayed):
                if _waits(call) and call not in refused and now_ns >= call.accepted_ns + self._max_wait_ns:
                    refused.append(call)
        for call in refused:
            self.forget(call)
        return refused

    def next_deadline_ns(self) -> int:
        """When the next timeout passes; 0 is never."""
        while self._deadlines and not _waits(self._deadlines[0][2]):
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else 0

    def __iter__(self) -> Iterator[Call]:
        """The waiting calls in the order in which they are to run."""
        for level in self._levels:
            for call in level.calls:
                if not call.is_delayed and _waits(call):
                    yield call
            for call in level.delayed:
                if _waits(call):
                    yield call

    def oldest_alike(self) -> Call | None:
        """The first of all that wait if they are in line by age and have the same shapes; None if that is not known."""
        first = self._first
        if self._is_mixed or not self._is_plain or not first.size or len(first.calls) != first.size or first.delayed:
            return None
        return first.calls[0]

    @property
    def has_delayed(self) -> bool:
        """Whether a call waits behind others because its timeout has passed."""
        return any(level.delayed for level in self._levels)

    def take(self, count: int) -> list[Call]:
        """Takes the first calls out."""
        first = self._first
        if count == self.size == first.size == len(first.calls) and not first.delayed:
            taken = list(first.calls)
            first.calls.clear()
            first.size = self.size = self.rows = 0
            return taken
        return self._take_some(count)

    def _take_some(self, count: int) -> list[Call]:
        taken: list[Call] = []
        num_before = 0
        for level in self._levels:
            for calls, is_delayed in ((level.calls, False), (level.delayed, True)):
                while calls and len(taken) < count:
                    call = calls.popleft()
                    if _waits(call) and call.is_delayed == is_delayed:
                        taken.append(call)
            level.size -= len(taken) - num_before
            num_before = len(taken)
        self.size -= len(taken)
        self.rows -= sum(call.rows for call in taken)
        return taken

    def oldest_ns(self, count: int) -> int:
        """When the oldest of the first calls was accepted."""
        oldest = 0
        for index, call in enumerate(self):
            if index == count:
                break
            oldest = call.accepted_ns if not oldest else min(oldest, call.accepted_ns)
        return oldest


def _waits(call: Call) -> bool:
    return not call.done and not call.started_ns
