"""One server process from start to end: bind, load, serve, drain, exit.

The port answers at once (`/ready` says 503) while the model loads. SIGTERM and SIGINT drain: no new requests, the
running ones finish or are cut off after a while, exit status 0; a second signal exits without waiting. Called by the
CLI.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import uvicorn

from millpond.api.request import EngineInfo
from millpond.base.errors import ConfigError
from millpond.base.progress import StageProgress
from millpond.base.units import format_bytes
from millpond.config.schema import EngineConfig
from millpond.inference.engine.client import AsyncEngine
from millpond.serve.gateway import Gateway
from millpond.serve.http.app import make_app
from millpond.serve.http.wire import MAX_HEAD_BYTES, http_protocol
from millpond.serve.listeners import listen
from millpond.serve.ports import Port, drain_ports, open_ports
from millpond.serve.settings import ServeSettings, needs_servables, resolve_serve

if TYPE_CHECKING:
    from millpond.serve.hosting import Hosting

_CUT_OFF_S = 2.0  # for streams to send their last event after they were cancelled
_KEEP_ALIVE_S = 75  # longer than clients keep idle connections, or they find them closed just when they need them


def run_server(config: EngineConfig, announce: Callable[[Port], str] | None = None) -> int:
    """Serves until a signal comes and returns the exit status.

    Args:
        config: What to serve, and how.
        announce: Makes the line that says where another protocol's port is.

    Raises:
        ConfigError: The settings make no sense, or the address cannot be bound.
        CheckpointError: The model cannot be loaded.
    """
    settings = resolve_serve(config.serve)
    listener = bind(settings)
    if not settings.is_loopback and settings.keys is None:
        print(
            f"Anyone who can reach {settings.host} can use this server; --serve.api_key_file asks for keys.",
            file=sys.stderr,
        )
    with listener, asyncio.Runner(loop_factory=_http_config(None).get_loop_factory()) as runner:
        return runner.run(_Server(config, settings, listener, announce).run())


def bind(settings: ServeSettings) -> socket.socket:
    """Returns a listening socket.

    Raises:
        ConfigError: The address is taken or is not ours.
    """
    try:
        return listen(settings.host, settings.port)
    except OSError as error:
        raise ConfigError(
            f"Port {settings.port} on {settings.host} cannot be bound: {error.strerror or error}.",
            fix="Stop what uses it, or give another with --port (0 picks a free one).",
            param="serve.port",
        ) from None


def url_of(host: str, port: int) -> str:
    """Returns the address to open in a browser on this machine."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"


def describe_start(info: EngineInfo, seconds: float) -> str:
    """Returns what runs and where the start's time went, for the log; `seconds` is since the port was bound."""
    stages = ", ".join(f"{stage} {taken:.1f}" for stage, taken in info.load_seconds.items() if taken >= 0.05)
    return (
        f"{info.model}: {info.dtype} ({info.dtype_reason}); {info.executor} executor, {info.isa}, "
        f"{info.threads} threads; context {info.max_model_len} tokens; weights {format_bytes(info.weight_bytes)}, "
        f"KV cache {format_bytes(info.cache_bytes)} of {info.cache_dtype}\n"
        f"Loaded in {seconds:.1f} s; seconds of the engine: {stages}"
    )


class _Server:
    def __init__(
        self,
        config: EngineConfig,
        settings: ServeSettings,
        listener: socket.socket,
        announce: Callable[[Port], str] | None = None,
    ) -> None:
        self._describe = announce or _describe_port
        self._config = config
        self._settings = settings
        self._listener = listener
        self._stop = asyncio.Event()
        self._since = time.monotonic()

    async def run(self) -> int:
        app = make_app(None, self._settings)
        gateway: Gateway = app.state.gateway
        http = _HttpServer(_http_config(app))
        hosting = _make_hosting(self._config, self._settings)
        ports = [*_other_ports(self._config, gateway), *(hosting.ports if hosting is not None else ())]
        async with open_ports(ports):
            return await self._serve(gateway, http, ports, hosting)

    async def _serve(self, gateway: Gateway, http: _HttpServer, ports: list[Port], hosting: Hosting | None) -> int:
        with self._signals():
            serving = asyncio.create_task(http.serve(sockets=[self._listener]))
            try:
                engine = await self._load(gateway)
                if engine is not None:
                    gateway.engine = engine
                    if hosting is not None:
                        await self._host(hosting, engine)
                    gc.collect()
                    gc.freeze()  # a collection that walks what stays anyway would hold every stream up
                    self._announce(engine, ports)
                    await self._stop.wait()
                    await self._drain(gateway, engine, ports, hosting)
            finally:
                gateway.draining = True
                if hosting is not None:
                    await hosting.close()
                http.should_exit = True
                await serving
                if gateway.engine is not None:
                    await gateway.engine.close()
                gateway.close()
        return 0

    async def _load(self, gateway: Gateway) -> AsyncEngine | None:
        """Starts the engine; returns None when a signal came first."""
        progress = StageProgress()

        def report(stage: str, fraction: float) -> None:
            gateway.load_stage, gateway.load_fraction = stage, fraction
            progress(stage, fraction)

        loading = asyncio.create_task(AsyncEngine.start(self._config, report))
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait((loading, stopping), return_when=asyncio.FIRST_COMPLETED)
            return loading.result() if loading.done() else None
        finally:
            stopping.cancel()
            if not loading.done():
                loading.cancel()
            await asyncio.gather(loading, stopping, return_exceptions=True)
            progress.close()

    async def _host(self, hosting: Hosting, engine: AsyncEngine) -> None:
        for failure in await hosting.start(engine):
            print(f"{failure.name} cannot be served: {failure.error.message.strip()}", file=sys.stderr)

    def _announce(self, engine: AsyncEngine, ports: list[Port]) -> None:
        print(describe_start(engine.info, time.monotonic() - self._since), file=sys.stderr, flush=True)
        for other in ports:
            print(self._describe(other), flush=True)
        port = self._listener.getsockname()[1]
        print(f"Millpond is serving {engine.info.model} at {url_of(self._settings.host, port)}", flush=True)

    async def _drain(
        self, gateway: Gateway, engine: AsyncEngine, ports: list[Port], hosting: Hosting | None
    ) -> None:
        gateway.draining = True
        if hosting is not None:
            hosting.refuse()
            await drain_ports(ports, self._settings.drain_timeout_s)
        if not await gateway.wait_idle(self._settings.drain_timeout_s):
            await engine.drain(0)
            await gateway.wait_idle(_CUT_OFF_S)

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
        if self._stop.is_set():
            os._exit(128 + number)  # the engine process ends when its socket closes
        self._stop.set()


def _describe_port(port: Port) -> str:
    return f"{port.name} is at {port.address}"


def _other_ports(config: EngineConfig, gateway: Gateway) -> list[Port]:
    """Returns the ports of the protocols that were asked for; what a protocol needs is imported with it."""
    ports: list[Port] = []
    if config.tgi.port is not None or config.tgi.shard_socket is not None:
        from millpond.serve.http.tgi.ports import make_ports

        ports += make_ports(config, gateway)
    return ports


def _make_hosting(config: EngineConfig, settings: ServeSettings) -> Hosting | None:
    """Returns what serves beside the engine's own protocols, when the settings ask for it."""
    if not needs_servables(config):
        return None
    from millpond.serve.hosting import Hosting, HostingPlan

    return Hosting(HostingPlan(config, settings.host, has_engine=True))


class _HttpServer(uvicorn.Server):
    """Uvicorn without its signal handlers, which would stop accepting before running requests have finished."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _http_config(app: object) -> uvicorn.Config:
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        http=http_protocol(),
        lifespan="off",
        ws="none",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(_CUT_OFF_S),
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
    )
