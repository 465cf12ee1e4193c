"""`OneByOne`: every request is an execution of its own, first come first served.

The scheduler of a servable without a batching policy, and the shortest way a request has: one append, one popleft.
"""

from __future__ import annotations

import asyncio
from collections import deque

from millpond.serve.servables.batching.endings import Fail, timed_out
from millpond.serve.servables.calls import Call
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.messages import InferRequest, InferResponse
from millpond.serve.servables.replicas import Replica, ReplicaSet


class OneByOne:
    """A queue without policies.

    Args:
        replicas: Who executes.
        fail: Answers a call with an error.
        max_wait_s: Longest wait of a call.
    """

    def __init__(self, replicas: ReplicaSet, *, fail: Fail, max_wait_s: float) -> None:
        self._replicas = replicas
        self._fail = fail
        self._max_wait_s = max_wait_s
        self._calls: deque[Call] = deque()
        self._num_gone = 0
        self.num_waiting = 0
        self._sweep: asyncio.TimerHandle | None = None

    @property
    def is_idle(self) -> bool:
        return not self.num_waiting

    def submit(self, call: Call) -> None:
        self._calls.append(call)
        self.num_waiting += 1
        if not self._replicas.wake() and self._sweep is None:
            self._arm(self._max_wait_s)

    def discard(self, call: Call) -> bool:
        if call.started_ns:
            return False
        self._num_gone += 1
        self.num_waiting -= 1
        if 2 * self._num_gone > len(self._calls) + 64:
            self._calls = deque(other for other in self._calls if not (other.done or other is call))
            self._num_gone = 0
        return True

    def fail_waiting(self, error: ServableError) -> None:
        while self._calls:
            self._pop(error)

    def poke(self) -> None:
        for _ in range(self.num_waiting):
            if not self._replicas.wake():
                return

    def owns(self, request: InferRequest) -> bool:
        return False

    def close(self) -> None:
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None

    def take(self, replica: Replica) -> list[Call]:
        calls = self._calls
        while calls:
            call = calls.popleft()
            if not call.done:
                self.num_waiting -= 1
                return [call]
            self._num_gone -= 1
        return []

    def ended(self, replica: Replica, calls: list[Call]) -> None:
        return None

    def outgoing(self, call: Call, response: InferResponse) -> InferResponse:
        return response

    def again(self, call: Call) -> bool:
        return False

    def returned(self, call: Call) -> bool:
        call.started_ns = 0
        call.replica = None
        at = 0
        while at < len(self._calls) and self._calls[at].accepted_ns < call.accepted_ns:
            at += 1
        self._calls.insert(at, call)
        self.num_waiting += 1
        return True

    def _pop(self, error: ServableError) -> None:
        call = self._calls.popleft()
        if call.done:
            self._num_gone -= 1
        else:
            self.num_waiting -= 1
            self._fail(call, error)

    def _arm(self, delay_s: float) -> None:
        self._sweep = asyncio.get_running_loop().call_later(delay_s, self._expire)

    def _expire(self) -> None:
        """Ends waits that are too long. The timer is armed for the oldest call, so it rarely runs."""
        self._sweep = None
        loop = asyncio.get_running_loop()
        while self._calls:
            call = self._calls[0]
            left_s = call.accepted_ns / 1e9 + self._max_wait_s - loop.time()
            if not call.done and left_s > 0.001:
                self._arm(left_s)
                return
            self._pop(timed_out(call))
