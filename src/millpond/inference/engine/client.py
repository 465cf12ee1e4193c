"""The gateway's engine: requests in, text events out, over the socket of a supervised engine process.

Owns the running requests of one engine: admission, routing of each step's tokens to the streams, detokenising and stop
strings, cancelling, and what happens to requests when the engine dies. Wakes once a step. Runs on asyncio; no torch.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from millpond.api.request import EngineInfo, EngineStats, ErrorInfo, Request
from millpond.base.errors import CancelledError, DeadlineError, EngineDeadError, MillpondError, QueueFullError
from millpond.config.schema import EngineConfig
from millpond.inference.engine.admission import check_request
from millpond.inference.engine.beam import stream_beams
from millpond.inference.engine.locating import locate_model
from millpond.inference.engine.messages import Cancel, Commands, SequenceOutput, StepOutput, typed_error
from millpond.inference.engine.output import RequestText
from millpond.inference.engine.stream import OutputStream, RequestStream, Route
from millpond.inference.engine.supervisor import ENGINE_COMMAND, ProgressCallback, RestartPolicy, Supervisor
from millpond.inference.text import TextModel, load_text

LONGEST_RETRY_S = 60.0
ClientState = Literal["starting", "ready", "restarting", "closed"]
# Codes that say the engine never began: raised to the caller in place of an error event.
_REFUSALS = frozenset({"queue_full", "invalid_request", "context_length_exceeded"})


@dataclass(frozen=True, slots=True)
class ClientPolicy:
    """How the client treats an engine that is away.

    Attributes:
        restart_wait_s: Longest wait of a new request for an engine that is being restarted.
        restart: Back-off of the restarts.
    """

    restart_wait_s: float = 30.0
    restart: RestartPolicy = field(default_factory=RestartPolicy)


class AsyncEngine:
    """An engine in its own process. Made by `await AsyncEngine.start(config)`; closed by `await engine.close()`.

    Attributes:
        text: The model's tokenizer and chat template.
        stats: Counters as of the engine's last message.
        state: "starting", "ready", "restarting" or "closed".
    """

    text: TextModel

    def __init__(self, config: EngineConfig, model_path: str, command: Sequence[str], policy: ClientPolicy) -> None:
        self.stats = EngineStats()
        self.state: ClientState = "starting"
        self._policy = policy
        self._supervisor = Supervisor(config, model_path, self, command=command, policy=policy.restart)
        self._log = logging.getLogger(__name__)
        self._info: EngineInfo | None = None
        self._routes: dict[str, Route] = {}
        self._wire_ids = itertools.count()
        self._unsent: list[Route] = []  # admitted, not yet told to the engine
        self._cancels: list[Cancel] = []
        self._flush_due = False
        self._draining = False
        self._request_s = 0.0  # what a request takes, a running mean
        self._empty = asyncio.Event()
        self._empty.set()

    @classmethod
    async def start(
        cls,
        config: EngineConfig,
        on_progress: ProgressCallback | None = None,
        *,
        command: Sequence[str] = ENGINE_COMMAND,
        policy: ClientPolicy | None = None,
    ) -> AsyncEngine:
        """Finds the model, starts the engine process and loads the tokenizer beside it.

        Args:
            config: What the user asked for.
            on_progress: Called on the event loop with a stage and how much of it is done, 0 to 1.
            command: What to run as the engine process.
            policy: Waiting and back-off.

        Raises:
            ConfigError, CheckpointError, MemoryError: Loading failed, here or in the engine process.
            EngineDeadError: The engine process ended without saying why.
        """
        loop = asyncio.get_running_loop()

        def report(stage: str, fraction: float) -> None:
            if on_progress is not None:
                loop.call_soon_threadsafe(on_progress, stage, fraction)

        config, path = await asyncio.to_thread(locate_model, config, report)
        model = config.model
        engine = cls(config, path, command, policy or ClientPolicy())
        loading = asyncio.create_task(asyncio.to_thread(load_text, path, model.tokenizer, model.chat_template))
        try:
            await engine._supervisor.start(on_progress)
            engine.text = await loading
        except BaseException:
            await asyncio.gather(loading, return_exceptions=True)
            await engine.close()
            raise
        return engine

    @property
    def info(self) -> EngineInfo:
        """What the engine said of itself when it was last ready."""
        assert self._info is not None, "the engine has not been ready yet"
        return self._info

    @property
    def pid(self) -> int | None:
        """The engine's process id, None while there is no process."""
        return self._supervisor.pid

    @property
    def num_requests(self) -> int:
        """Requests that have not finished."""
        return len(self._routes)

    def generate(self, request: Request) -> OutputStream:
        """Admits a request and returns its events. Closing the iterator cancels the request.

        Requests that arrive while the engine restarts wait for it, for a bounded time.

        Raises:
            RequestError: The request can never succeed.
            QueueFullError: Too many wait; try again later.
            EngineDeadError: The engine is closed or draining.
        """
        if self.state == "closed" or self._draining:
            raise EngineDeadError("The engine is shutting down.", fix="Send the request to another replica.")
        request = check_request(request, self.info)
        self._check_queue(max(request.params.n, request.params.beam_width))
        if request.params.beam_width > 1:
            return stream_beams(self._submit, request, self.info.eos_token_ids, self.text.tokenizer)
        return self._submit(request)

    async def drain(self, timeout_s: float) -> None:
        """Takes no new requests, waits for the running ones, and cancels those that are left after `timeout_s`."""
        self._draining = True
        if self._routes:
            try:
                await asyncio.wait_for(self._empty.wait(), timeout_s)
            except TimeoutError:
                self._log.warning("%d requests did not finish in time and are cancelled.", len(self._routes))
        for route in list(self._routes.values()):
            self._cancel(route, "The server is shutting down.")

    async def close(self) -> None:
        """Ends the engine process; running requests get an error event."""
        self.state = "closed"
        self._fail_all(list(self._routes.values()), "The engine was closed.")
        await self._supervisor.close()

    def engine_up(self, info: EngineInfo) -> None:
        """From the supervisor: the engine is ready."""
        self._info = info
        self.stats = EngineStats(num_blocks=info.num_blocks, num_free_blocks=info.num_blocks)
        if self.state != "closed":
            self.state = "ready"
            self._schedule_flush()

    def engine_down(self, reason: str) -> None:
        """From the supervisor: the engine died. What it held fails now; what it had not got yet waits."""
        self.state = "restarting"
        self.stats = EngineStats(num_blocks=self.stats.num_blocks)
        self._cancels.clear()
        self._fail_all([route for route in self._routes.values() if route.is_sent], reason)
        for route in self._unsent:
            self._hold(route)

    def engine_step(self, step: StepOutput) -> None:
        """From the supervisor: a step's tokens, for every sequence in it."""
        self.stats = step.stats
        for output in step.outputs:
            route = self._routes.get(output.request_id)
            if route is None:
                continue  # cancelled; the engine did not know yet
            try:
                self._take(route, output)
            except Exception as error:  # a bug in one request's text must not end the others
                self._log.exception("Request %s failed in the gateway.", route.request.request_id)
                route.fail("error", ErrorInfo(MillpondError.code, f"The output could not be decoded: {error}"))
                self._forget(route)

    def _submit(self, request: Request) -> OutputStream:
        route = Route(str(next(self._wire_ids)), request, RequestText(request, self.text.tokenizer))
        self._routes[route.wire_id] = route
        self._empty.clear()
        self._unsent.append(route)
        if self.state == "ready":
            self._schedule_flush()
        else:
            self._hold(route)
        return RequestStream(route, self._cancel)

    def _cancel(self, route: Route, reason: str = "The request was cancelled.") -> None:
        if not route.is_finished:
            route.fail("cancelled", ErrorInfo(CancelledError.code, reason))
            self._forget(route)

    def _take(self, route: Route, output: SequenceOutput) -> None:
        error = output.error
        if error is not None and error.code in _REFUSALS:
            route.refuse(typed_error(error))
        elif route.push(output):
            self._cancels.append(Cancel(output.request_id, output.index))
            self._schedule_flush()
        if route.is_finished:
            self._request_s += 0.1 * (time.monotonic() - route.added_s - self._request_s)
            self._remove(route)

    def _check_queue(self, num_sequences: int) -> None:
        """Refuses what the engine's scheduler would refuse, without asking it."""
        inside = sum(route.num_open for route in self._routes.values())
        places = self.info.max_sequences + self.info.max_queue
        if inside + num_sequences > places:
            raise QueueFullError(
                f"{inside} sequences run or wait, and the engine takes {places}.",
                retry_after_s=self._retry_after_s(num_sequences),
                fix="Try again later.",
            )

    def _retry_after_s(self, num_sequences: int) -> float:
        """About when so many places come free: what a request took of late, shared by those that run."""
        wait_s = self._request_s * num_sequences / max(1, self.stats.num_running)
        return min(max(1.0, wait_s), LONGEST_RETRY_S)

    def _schedule_flush(self) -> None:
        if not self._flush_due:
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        """Sends what came together since the last turn of the event loop, as one message."""
        self._flush_due = False
        if self.state != "ready":
            return
        unsent, self._unsent = self._unsent, []
        cancels, self._cancels = self._cancels, []
        for route in unsent:
            route.is_sent = True
        if unsent or cancels:
            self._supervisor.send(Commands([route.as_sent() for route in unsent], cancels))

    def _forget(self, route: Route) -> None:
        """Removes a route that ended here; tells the engine if it knows the request."""
        self._remove(route)
        if route.is_sent and self.state == "ready":
            self._cancels.append(Cancel(route.wire_id))
            self._schedule_flush()

    def _remove(self, route: Route) -> None:
        self._routes.pop(route.wire_id, None)
        if not route.is_sent and route in self._unsent:
            self._unsent.remove(route)
        if not self._routes:
            self._empty.set()

    def _hold(self, route: Route) -> None:
        """Lets a request wait for the engine to come back, for a bounded time."""
        longest_s = min(self._policy.restart_wait_s, route.time_left_s)
        asyncio.get_running_loop().call_later(longest_s, self._give_up, route)

    def _give_up(self, route: Route) -> None:
        if route.is_sent or route.is_finished:
            return
        if route.time_left_s <= 0:
            route.fail("deadline", ErrorInfo(DeadlineError.code, "The request's deadline passed before it began."))
            self._remove(route)
        else:
            waited_s = self._policy.restart_wait_s
            self._fail_all([route], f"The engine was not back after {waited_s:g} s.")

    def _fail_all(self, routes: list[Route], reason: str) -> None:
        for route in routes:
            route.fail("error", ErrorInfo(EngineDeadError.code, reason))
            self._remove(route)
