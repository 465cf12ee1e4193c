"""`DynamicBatcher`: merges requests of several clients into one execution.

Holds the queue, asks the rules (`plan`) when a replica is free, and keeps the one timer that delays and timeouts need.
Back ends get the requests as they are; those that want one tensor of many use `merge`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from millpond.serve.servables.batching.endings import Fail, queue_full, timed_out
from millpond.serve.servables.batching.gathering import Gathering
from millpond.serve.servables.batching.lead import Lead
from millpond.serve.servables.batching.ordering import Ordering
from millpond.serve.servables.batching.parting import Parting
from millpond.serve.servables.batching.plan import BatchPlan, BatchRules, ShapeKeys
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
        self._wants_all = all(size == self._rules.max_rows for size in batching.preferred_sizes)
        can_gather = batching.max_delay_us > 0 and self._wants_all and not self._has_levels
        self._gathering = Gathering(self._rules.max_rows, self._rules.delay_ns) if can_gather else None
        self._parting = Parting(self._rules.delay_ns)
        self._part_rows = 0  # so many need not wait for more
        self._lead = Lead(self._rules.delay_ns)
        self._timer = Timer(self._on_time, clock)
        self._is_deciding = False  # a replica will ask; what comes until then changes nothing
        # While a batch waits to grow: how many rows are worth a new decision, when it goes at the latest, and when it
        # goes unless others come.
        self._enough_rows = self._due_ns = self._aim_ns = 0
        self._last_key: object = None
        self._last_ns = 0  # when a request came
        self._last_rows = 0  # of the last batch

    @property
    def num_waiting(self) -> int:
        return self._queue.size

    @property
    def is_idle(self) -> bool:
        return not self._queue.size

    def submit(self, call: Call) -> None:
        queue, now_ns = self._queue, call.accepted_ns
        key = call.shape_key = self._keys.of(call.request)
        if not queue.add(call, now_ns):
            raise queue_full(call)
        if self._ordering is not None:
            self._ordering.enter(call)
        is_alike, self._last_key, self._last_ns = key == self._last_key, key, now_ns
        if 0 < self._part_rows <= queue.rows and self._wake(at_once=True):
            return
        if not self._is_deciding:
            if queue.rows < self._enough_rows and is_alike and not self._has_levels:
                if now_ns >= self._due_ns and self._wake(at_once=True):
                    return
            elif self._wake():
                return
        if not 0 < self._timer.at_ns <= call.deadline_ns:
            self._timer.at(call.deadline_ns)

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
            if not self._wake():
                return

    def owns(self, request: InferRequest) -> bool:
        return False

    def close(self) -> None:
        self._timer.stop()

    def take(self, replica: Replica) -> list[Call]:
        queue = self._queue
        gathering = self._gathering if self._replicas.is_one and replica.instance.concurrency == 1 else None
        self._is_deciding = False
        self._enough_rows = self._due_ns = self._aim_ns = 0
        now_ns = self._clock()
        self._refuse(queue.expire(now_ns))
        plan = self._plan(now_ns)
        if gathering is not None:
            parting = self._parting
            if parting.ended(queue.size, now_ns):
                gathering.soon()
            self._part_rows = parting.goal
            if not plan.count:
                gathering.idle()
                if 0 < parting.goal <= queue.rows:
                    plan = BatchPlan(queue.size)
            elif not parting.keeps(now_ns) and gathering.holds(
                queue.rows, now_ns, can_grow=plan.count == queue.size and not queue.has_delayed
            ):
                self._enough_rows, self._due_ns = gathering.goal, gathering.until_ns
                self._timer.at(min(self._first_deadline_ns(now_ns), gathering.until_ns))
                return []
        if not queue.size:
            return []
        if not plan.count:
            self._enough_rows = plan.enough_rows
            self._due_ns = plan.wait_until_ns - self._lead.near_ns
            self._aim_ns = self._lead.aim(plan.wait_until_ns, self._quiet_since_ns(now_ns))
            self._timer.at(min(self._first_deadline_ns(now_ns), self._aim_ns))
            return []
        rows = queue.rows
        calls = queue.take(plan.count)
        self._last_rows = rows - queue.rows
        if gathering is not None:
            gathering.begun(self._last_rows, now_ns)
            self._parting.begun(self._last_rows, now_ns)
            self._part_rows = 0
        if queue.size:
            self._timer.at(self._first_deadline_ns(now_ns))
            self._wake()
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

    def _plan(self, now_ns: int) -> BatchPlan:
        queue, rules = self._queue, self._rules
        lead_ns = self._lead.of(now_ns, self._quiet_since_ns(now_ns))
        if self._wants_all and queue.rows <= rules.max_rows and (oldest := queue.oldest_alike()) is not None:
            if rules.plan_whole(queue.rows, oldest.accepted_ns, now_ns, lead_ns):
                return BatchPlan(queue.size)
            return BatchPlan(0, oldest.accepted_ns + rules.delay_ns, rules.max_rows)
        return rules.plan(queue, now_ns, lead_ns)

    def _quiet_since_ns(self, now_ns: int) -> int:
        """When a request came last; a moment to come while more are likely, those of the last batch."""
        return self._last_ns if self._queue.rows >= self._last_rows else now_ns + self._rules.delay_ns

    def _wake(self, *, at_once: bool = False) -> bool:
        """Has a replica ask for a batch; False when none can."""
        # Until it has asked, which may be before the next line. One of several may have to wait for something.
        self._is_deciding = self._replicas.is_one
        if self._replicas.wake(at_once=at_once):
            return True
        self._is_deciding = False
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
        aim_ns = self._aim_ns if now_ns >= self._aim_ns else 0
        if aim_ns and now_ns < self._due_ns:  # who has come meanwhile and was not read yet may be of the batch
            asyncio.get_running_loop().call_soon(self._leave, aim_ns)
        else:
            self._leave(aim_ns)

    def _leave(self, aim_ns: int) -> None:
        """Has a batch go now, before anything else; one that aimed at a moment tells how late it was."""
        self._enough_rows = self._aim_ns = 0
        if not self._queue.size:
            return
        if not self._wake(at_once=True):
            self._timer.at(self._first_deadline_ns(self._clock()))
        elif aim_ns and not self._aim_ns:
            self._lead.was_late(self._clock() - aim_ns)
