"""`Replica`: one loaded instance, the lanes that feed it, and its way back after a crash.

A lane is a long-lived task that asks the servable's scheduler for calls and executes them; there are as many as the
instance takes executions at once, made when they are first needed. So a request costs no task and no lock. Knows
nothing of queues or policies: `Source` decides what is executed when.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable
from typing import Protocol

from millpond.serve.servables.ahead import Ahead
from millpond.serve.servables.backend import Beginner, ExecutionTiming, Instance
from millpond.serve.servables.calls import Call
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.executions import Execution, Host, Source, broken, failed
from millpond.serve.servables.restarts import Backoff

_log = logging.getLogger("millpond.serve.servables")
_PATIENCE_S = 1.0  # while a restart comes this soon, requests wait for it instead of being refused


class Gate(Protocol):
    """Lets a replica execute; the rate limiter's side of a replica."""

    def enter(self) -> Awaitable[None]: ...

    def leave(self) -> None: ...

    def close(self) -> None: ...


class Replica:
    """One instance of a servable.

    Args:
        instance: Loaded.
        source: Gives the calls.
        host: The servable.
        backoff: When to restart.
        gate: Asked before each execution; None when nothing is rate limited.
        may_run_ahead: Whether the instance is given more than it runs, see `ahead`.
    """

    def __init__(
        self,
        instance: Instance,
        *,
        source: Source,
        host: Host,
        backoff: Backoff,
        gate: Gate | None = None,
        may_run_ahead: bool = False,
    ) -> None:
        self.instance = instance
        self.is_down = False
        self.refusal: ServableError | None = None  # set while it is down for longer
        self.num_executing = 0
        self._source = source
        self._host = host
        self._backoff = backoff
        self._gate = gate
        self._ahead = Ahead(instance.concurrency, is_allowed=may_run_ahead and gate is None)
        self._beginner = instance if gate is None and isinstance(instance, Beginner) else None
        self._is_beginning = self._begins_soon = self._is_closed = False
        self._lanes: set[asyncio.Task[None]] = set()
        self._parked: deque[asyncio.Future[None]] = deque()
        self._up: asyncio.Future[None] | None = None
        self._side_tasks: set[asyncio.Task[None]] = set()
        self._executing: set[Call] = set()
        backoff.started(host.clock() / 1e9)

    def wake(self, *, at_once: bool = False) -> bool:
        """Makes an idle lane ask the source again; False when there is none.

        Without a lane the source is asked at the end of this turn of the loop: what else arrives in it may be of the
        same batch. Or `at_once`, before this returns.
        """
        if self.is_down or self.num_executing > self._ahead.low:
            return False
        if self._beginner is not None:
            if self._is_beginning:
                return False
            if at_once or self._ahead.is_allowed:
                self._begin_all(self._beginner)
                return True
            if self._begins_soon:
                return False
            self._begins_soon = True
            asyncio.get_running_loop().call_soon(self._begin_all, self._beginner)
            return True
        parked = self._parked
        while parked:
            waiter = parked.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return True
        if len(self._lanes) < self._ahead.limit:
            lane = asyncio.get_running_loop().create_task(self._run_lane())
            self._lanes.add(lane)
            lane.add_done_callback(self._lane_ended)
            return True
        return False

    def cancel(self, call: Call) -> None:
        """Tells the instance that nobody waits for a call it executes."""
        self._start(self.instance.cancel(call.request))

    async def close(self) -> None:
        """Stops its lanes and frees the instance; what still runs is answered with an error."""
        for call in self._executing:
            if not call.done and not call.is_null:
                gone = ServableError("unavailable", "The servable was unloaded.")
                self._host.deliver(call, failed(self._host, gone))
        self._is_closed = True
        tasks = [*self._lanes, *self._side_tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._gate is not None:
            self._gate.close()
        await self.instance.close()

    async def _run_lane(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if self._up is not None:
                await asyncio.shield(self._up)
            if self._gate is not None:
                await self._gate.enter()
            calls = self._source.take(self) if self.num_executing < self._ahead.limit else []
            if not calls:
                if self._gate is not None:
                    self._gate.leave()
                waiter = loop.create_future()
                self._parked.append(waiter)
                await waiter
                continue
            try:
                await self._execute(calls)
            finally:
                if self._gate is not None:
                    self._gate.leave()

    def _begin_all(self, beginner: Beginner) -> None:
        """Gives the instance what it may have, without a lane."""
        self._begins_soon = False
        if self._is_beginning:
            return
        self._is_beginning = True
        ahead, source = self._ahead, self._source
        try:
            while self.num_executing < ahead.limit and not (self.is_down or self._is_closed):
                calls = source.take(self)
                if not calls:
                    return
                execution = self._enter(calls)
                try:
                    freed = None if ahead.is_allowed else execution.freed
                    beginner.begin([call.request for call in calls], execution, execution.ended, freed)
                except ServableError as error:
                    if error.code == "unavailable" and not self._is_closed:
                        execution.give_back()  # it died while it had nothing to do: the requests never reached it
                    execution.ended(error)
                except Exception:
                    _log.exception("an instance of servable %s failed", self._host.statistics.name)
                    execution.ended(broken())
        finally:
            self._is_beginning = False

    def freed(self) -> None:
        """An execution's model is done; its responses follow."""
        self.num_executing -= 1
        if self._beginner is not None:
            self._begin_all(self._beginner)

    def ended(self, execution: Execution, result: ExecutionTiming | ServableError) -> None:
        """An execution is over."""
        if isinstance(result, ServableError):
            self._failed(execution, result)
        else:
            self._succeeded(execution, result)
        self._leave(execution.calls, was_freed=execution.was_freed)
        if self._beginner is not None and not self._is_beginning and self.num_executing <= self._ahead.low:
            self._begin_all(self._beginner)

    def _enter(self, calls: list[Call]) -> Execution:
        host = self._host
        started_ns = host.clock()
        rows = 0
        for call in calls:
            call.started_ns = started_ns
            call.replica = self
            trace = call.request.trace
            if trace is not None:
                trace.hold()
            if not call.is_null:
                rows += call.rows
        self.num_executing += 1
        self._executing.update(calls)
        return Execution(calls, self, self._source, host, rows)

    async def _execute(self, calls: list[Call]) -> None:
        execution = self._enter(calls)
        try:
            self._succeeded(execution, await self.instance.execute([call.request for call in calls], execution))
        except ServableError as error:
            self._failed(execution, error)
        except Exception:
            _log.exception("an instance of servable %s failed", self._host.statistics.name)
            execution.fail_rest(broken())
            execution.account(ExecutionTiming())
        finally:
            self._leave(calls)

    def _succeeded(self, execution: Execution, timing: ExecutionTiming) -> None:
        if execution.has_rest():
            execution.fail_rest(ServableError("internal", "The servable gave no final response to a request."))
        self._host.statistics.add_execution(execution.rows, timing)
        execution.account(timing)
        self._ahead.took(timing)

    def _failed(self, execution: Execution, error: ServableError) -> None:
        if error.code == "unavailable" and not self._is_closed:
            if self.is_down and self._ahead.is_allowed:
                execution.give_back()  # it waited behind the one that the instance died with
            self._went_down(error)
        execution.fail_rest(error)
        execution.account(ExecutionTiming())

    def _leave(self, calls: list[Call], *, was_freed: bool = False) -> None:
        self._executing.difference_update(calls)
        self.num_executing -= not was_freed
        self._source.ended(self, calls)

    def _went_down(self, error: ServableError) -> None:
        if self.is_down:
            return
        _log.warning("an instance of servable %s is down: %s", self._host.statistics.name, error.message)
        self.is_down = True
        self._up = asyncio.get_running_loop().create_future()
        self._start(self._revive(error))

    async def _revive(self, error: ServableError) -> None:
        has_failed = False
        while True:
            wait_s = self._backoff.next_wait_s(self._host.clock() / 1e9)
            if wait_s > _PATIENCE_S or has_failed:
                self.refusal = ServableError("unavailable", error.message, retry_after_s=wait_s)
            self._host.replica_changed()
            if wait_s:
                await asyncio.sleep(wait_s)
            try:
                await self.instance.restart()
                break
            except ServableError as failure:
                error = failure
                has_failed = True
        self._backoff.started(self._host.clock() / 1e9)
        self._ahead.restarted()
        self.is_down = False
        self.refusal = None
        up, self._up = self._up, None
        if up is not None and not up.done():
            up.set_result(None)
        self._host.replica_changed()

    def _start(self, work: Awaitable[None]) -> None:
        async def run() -> None:
            await work

        task = asyncio.get_running_loop().create_task(run())
        self._side_tasks.add(task)
        task.add_done_callback(self._side_task_ended)

    def _side_task_ended(self, task: asyncio.Task[None]) -> None:
        self._side_tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("cancelling or restarting an instance failed", exc_info=task.exception())

    def _lane_ended(self, task: asyncio.Task[None]) -> None:
        self._lanes.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("a lane of servable %s ended", self._host.statistics.name, exc_info=task.exception())


class ReplicaSet:
    """The replicas of a servable that take requests, in turn."""

    def __init__(self) -> None:
        self._ring: deque[Replica] = deque()

    def add(self, replica: Replica) -> None:
        """Adds one."""
        self._ring.append(replica)

    @property
    def is_one(self) -> bool:
        """Whether there is a single one."""
        return len(self._ring) == 1

    def wake(self, *, at_once: bool = False) -> bool:
        """Wakes the next replica that is idle; False when all are busy."""
        ring = self._ring
        if len(ring) == 1:
            return ring[0].wake(at_once=at_once)
        for _ in range(len(ring)):
            replica = ring[0]
            ring.rotate(-1)
            if replica.wake(at_once=at_once):
                return True
        return False
