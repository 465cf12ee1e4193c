"""A server of a model repository without a language model of its own, from start to end.

The ports answer at once ("not ready" while models load). SIGTERM and SIGINT drain: "not ready", running requests
finish or are cut off after a while, exit status 0; a second signal exits without waiting. Called by `millpond serve
--repository DIR` and by `tritonserver`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator

from millpond.config.schema import EngineConfig
from millpond.serve.hosting import Hosting, HostingPlan
from millpond.serve.ports import Port, drain_ports, open_ports
from millpond.serve.settings import resolve_serve

_DRAIN_FIRST_S = 0.2  # so that who watches "ready" hears of it before the sockets close
Announce = Callable[[Port], str]


def run_repository_server(config: EngineConfig, announce: Announce | None = None) -> int:
    """Serves until a signal comes and returns the exit status.

    Args:
        config: Everything a user said.
        announce: The line printed for a port that is open; the house's own when it is left out.

    Raises:
        ConfigError: The settings make no sense, or an address cannot be bound.
    """
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_Server(config, announce or _plain).run())


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def _plain(port: Port) -> str:
    return f"{port.name} is at {port.address}"


class _Server:
    def __init__(self, config: EngineConfig, announce: Announce) -> None:
        self._config = config
        self._announce = announce
        self._settings = resolve_serve(config.serve)
        self._stop: asyncio.Event | None = None

    async def run(self) -> int:
        self._stop = asyncio.Event()
        hosting = Hosting(HostingPlan(self._config, self._settings.host, has_engine=False))
        try:
            async with open_ports(hosting.ports):
                with self._signals():
                    return await self._serve(hosting)
        finally:
            await hosting.close()

    async def _serve(self, hosting: Hosting) -> int:
        assert self._stop is not None
        loading = asyncio.create_task(hosting.start(None))
        stopping = asyncio.create_task(self._stop.wait())
        await asyncio.wait((loading, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not loading.done():
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
            return 0
        failures = loading.result()
        for failure in failures:
            print(f"{failure.name} cannot be served: {failure.error.message.strip()}", file=sys.stderr)
        if failures and self._config.repository.exit_on_error:
            stopping.cancel()
            return 1
        for port in hosting.ports:
            print(self._announce(port), flush=True)
        names = [name for name in hosting.servables.names() if hosting.servables.versions(name)]
        print(f"Millpond is serving {len(names)} models: {', '.join(names)}", file=sys.stderr, flush=True)
        gc.collect()
        gc.freeze()  # a collection that walks what stays anyway would hold every request up
        await stopping
        hosting.refuse()
        await asyncio.sleep(_DRAIN_FIRST_S)
        await drain_ports(hosting.ports, self._settings.drain_timeout_s)
        return 0

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def _on_signal(self, number: signal.Signals) -> None:
        assert self._stop is not None
        if self._stop.is_set():
            os._exit(128 + number)
        self._stop.set()
