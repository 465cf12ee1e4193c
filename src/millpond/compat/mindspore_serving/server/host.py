"""`ServingHost`: the servers and servables of the user's process, run by an event loop in a thread of their own.

A script calls `start_servables`, then starts servers, then returns; the thread, which is no daemon, keeps the process
alive until `stop` or a signal. Every call from the script waits for the loop. Owned by `server`'s functions.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any, TypeVar

from millpond.base.errors import ConfigError
from millpond.compat.mindspore_serving.server.start_config import ServableStartConfig
from millpond.serve.servables.errors import ServableError

if TYPE_CHECKING:
    from millpond.compat.mindspore_serving.server.runtime import Runtime
    from millpond.serve.mindspore.dispatch import Dispatcher
    from millpond.serve.ports import Port
    from millpond.serve.servables.registry import Servables

T = TypeVar("T")

MAX_ENQUEUED_REQUESTS = 10_000
DRAIN_S = 10.0
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class ServingHost:
    """What `start_servables` and the servers share. One a process; all its methods are for the script's threads."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._max_enqueued_requests = MAX_ENQUEUED_REQUESTS
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._runtime: Runtime | None = None
        self._ports: dict[str, Port] = {}
        self._old_handlers: dict[int, Any] = {}

    @property
    def max_enqueued_requests(self) -> int:
        """Most calls that are open at once."""
        return self._max_enqueued_requests

    @max_enqueued_requests.setter
    def max_enqueued_requests(self, number: int) -> None:
        with self._lock:
            self._max_enqueued_requests = number
            if self._runtime is not None:
                self._runtime.dispatcher.max_enqueued_requests = number

    @property
    def servables(self) -> Servables | None:
        """The registry, while something runs."""
        return None if self._runtime is None else self._runtime.servables

    def start_servables(self, configs: Sequence[ServableStartConfig]) -> None:
        """Loads servables; returns when all answer.

        Raises:
            RuntimeError: One cannot be loaded; all is stopped.
        """
        try:
            self._run(self._load(configs))
        except ServableError as error:
            self.stop()
            raise RuntimeError(f"Fail to start workers: {error.message}") from None
        except BaseException:
            self.stop()
            raise

    def start_port(self, kind: str, make: Callable[[Dispatcher], Port], failure: str) -> str:
        """Starts a server and returns its address.

        Args:
            kind: "gRPC" or "RESTful"; one of each.
            make: Called with the dispatcher, returns the port.
            failure: What to say when the address cannot be bound.

        Raises:
            RuntimeError: There is one of the kind, or the address cannot be bound; all is stopped.
        """
        with self._lock:
            if kind in self._ports:
                raise RuntimeError(f"Serving Error: Serving {kind} server is already running")
            try:
                port = make(self._begin().dispatcher)
                self._ports[kind] = port
                self._run(port.start())
            except ConfigError as error:
                self._ports.pop(kind, None)
                self.stop()
                raise RuntimeError(f"{failure}: {error}") from None
            except BaseException:
                self._ports.pop(kind, None)
                self.stop()
                raise
            return port.address

    def stop(self) -> None:
        """Stops servers and servables; what runs may finish for a while."""
        with self._lock:
            loop, thread = self._loop, self._thread
            if loop is None or thread is None:
                return
            asyncio.run_coroutine_threadsafe(self._close(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            if thread is not threading.current_thread():
                thread.join()
            self._loop = self._thread = self._runtime = None
            self._ports.clear()
            self._restore_signals()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs work on the loop and waits for it in steps, so that a signal's handler gets its turn."""
        self._begin()
        assert self._loop is not None
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        while True:
            try:
                return future.result(timeout=0.2)
            except TimeoutError:
                if future.done():
                    raise
            except CancelledError:
                raise RuntimeError("Fail to start workers because of signal SIGINT or SIGTERM") from None
            except BaseException:
                future.cancel()
                raise

    def _begin(self) -> Runtime:
        # Only whoever serves pays for these imports: workers import `register`, and with it this package.
        from millpond.compat.mindspore_serving.server.runtime import make_runtime

        with self._lock:
            if self._runtime is not None:
                return self._runtime
            loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=_run_loop, args=(loop,), name="mindspore-serving")
            self._thread.start()
            self._loop = loop
            self._runtime = make_runtime(self._max_enqueued_requests)
            self._take_signals()
            return self._runtime

    async def _load(self, configs: Sequence[ServableStartConfig]) -> None:
        assert self._runtime is not None
        loads = [self._runtime.load(config) for config in configs]
        for outcome in await asyncio.gather(*loads, return_exceptions=True):
            if outcome is not None:
                raise outcome
        for config in configs:
            print(
                f"Serving: Start servable success, servable directory: '{config.servable_directory}', servable name: "
                f"'{config.servable_name}', version number: {config.version_number}",
                flush=True,
            )

    async def _close(self) -> None:
        for port in self._ports.values():
            await port.drain(DRAIN_S)
        for port in self._ports.values():
            await port.stop()
        if self._runtime is not None:
            await self._runtime.servables.close()
        rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    def _take_signals(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _STOP_SIGNALS:
            self._old_handlers[number] = signal.signal(number, self._on_signal)

    def _restore_signals(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number, handler in self._old_handlers.items():
            if signal.getsignal(number) == self._on_signal:
                signal.signal(number, handler)
        self._old_handlers.clear()

    def _on_signal(self, number: int, frame: object) -> None:
        self.stop()


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
