"""`DynamicBatcher`: merges requests of several clients into one execution.

Holds the queue, asks the rules (`plan`) when a replica is free, and keeps the one timer that delays and timeouts need.
Back ends get the requests as they are; those that want one tensor of many use `merge`.
"""

from __future__ import annotations

from collections.abc import Callable

from millpond.serve.servables.batching.endings import Fail, queue_full, timed_out
from millpond.serve.servables.batching.gathering import Gathering
from millpond.serve.servables.batching.ordering import Ordering
from millpond.serve.servables.batching.plan import BatchRules, ShapeKeys
from millpond.serve.servables.batching.queue import PolicyQueue
from millpond.serve.servables.batching.timer import Timer
from millpond.serve.servables.calls import Call
from millpond.serve.servables.config import DynamicBatching, ServableConfig
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.messages import InferRequest, InferResponse
from millpond.serve.servables.replicas import Replica, ReplicaSet


class DynamicBatcher:
    """The scheduler of a servable with dynamic batching.

    Args:
        config: The servable's.
        batching: Its batching.
        replicas: Who executes.
        fail: Answers a call with an error.
        clock: Nanoseconds.
        max_wait_s: Longest wait of a call.
    """

    def __init__(
        self,
        config: ServableConfig,
        batching: DynamicBatching,
        replicas: ReplicaSet,
        *,
        fail: Fail,
        clock: Callable[[], int],
        max_wait_s: float,
    ) -> None:
        self._replicas = replicas
        self._fail = fail
        self._clock = clock
        self._max_wait_ns = int(max_wait_s * 1e9)
        self._queue = PolicyQueue(batching, max_wait_ns=self._max_wait_ns)
        self._rules = BatchRules(
            max(1, config.max_batch_size), frozenset(batching.preferred_sizes), batching.max_delay_us * 1000
        )
        self._keys = ShapeKeys(config)
        self._ordering = Ordering() if batching.preserve_ordering else None
        self._has_levels = batching.priority_levels > 1
        wants_all = all(size == self._rules.max_rows for size in batching.preferred_sizes)
        can_gather = batching.max_delay_us > 0 and wants_all and not self._has_levels
        self._gathering = Gathering(self._rules.max_rows, self._rules.delay_ns) if can_gather else None
        self._timer = Timer(self._on_time, clock)
        self._enough_rows = 0  # while a batch waits to grow: how many rows are worth a new decision
        self._last_key: object = None

    @property
    def num_waiting(self) -> int:
        return self._queue.size

    @property
    def is_idle(self) -> bool:
        return not self._queue.size

    def submit(self, call: Call) -> None:
        call.shape_key = self._keys.of(call.request)
        if not self._queue.add(call, call.accepted_ns):
            raise queue_full(call)
        if self._ordering is not None:
            self._ordering.enter(call)
        changes_nothing = (
            self._queue.rows < self._enough_rows and call.shape_key == self._last_key and not self._has_levels
        )
        self._last_key = call.shape_key
        if changes_nothing or not self._replicas.wake():
            self._timer.at(self._first_deadline_ns(call.accepted_ns))

    def discard(self, call: Call) -> bool:
        if call.started_ns:
            return False
        self._queue.forget(call)
        self._enough_rows = 0
        if self._ordering is not None:
            self._ordering.leave(call)
        return True

    def fail_waiting(self, error: ServableError) -> None:
        self._enough_rows = 0
        for call in self._queue.take(self._queue.size):
            self._fail(call, error)

    def poke(self) -> None:
        for _ in range(self._queue.size):
            if not self._replicas.wake():
                return

    def owns(self, request: InferRequest) -> bool:
        return False

    def close(self) -> None:
        self._timer.stop()

    def take(self, replica: Replica) -> list[Call]:
        queue = self._queue
        gathering = self._gathering if self._replicas.is_one and replica.instance.concurrency == 1 else None
        now_ns = self._clock()
        self._refuse(queue.expire(now_ns))
        plan = self._rules.plan(queue, now_ns)
        if gathering is not None:
            if not plan.count:
                gathering.idle()
            elif gathering.holds(queue.rows, now_ns):
                self._enough_rows = gathering.goal
                self._timer.at(min(self._first_deadline_ns(now_ns), gathering.until_ns))
                return []
        if not queue.size:
            return []
        self._enough_rows = plan.enough_rows
        calls = queue.take(plan.count) if plan.count else []
        if gathering is not None and calls:
            gathering.begun(sum([call.rows for call in calls]), now_ns)
        if queue.size:
            deadline_ns = self._first_deadline_ns(now_ns)
            self._timer.at(min(deadline_ns, plan.wait_until_ns) if plan.wait_until_ns else deadline_ns)
            if calls:
                self._replicas.wake()
        return calls

    def ended(self, replica: Replica, calls: list[Call]) -> None:
        if self._ordering is not None:
            for call in calls:
                self._ordering.leave(call)

    def outgoing(self, call: Call, response: InferResponse) -> InferResponse:
        return response

    def returned(self, call: Call) -> bool:
        return False

    def again(self, call: Call) -> bool:
        return False

    def _first_deadline_ns(self, now_ns: int) -> int:
        return self._queue.next_deadline_ns() or now_ns + self._max_wait_ns

    def _refuse(self, calls: list[Call]) -> None:
        for call in calls:
            self._fail(call, timed_out(call))

    def _on_time(self) -> None:
        now_ns = self._clock()
        self._refuse(self._queue.expire(now_ns))
        self._refuse(self._queue.expire_oldest(now_ns))
        self._enough_rows = 0
        if self._queue.size and not self._replicas.wake():
            self._timer.at(self._first_deadline_ns(now_ns))
