"""Every port of a language model over an engine that a bench steps: no engine process, no numbers, no weights.

Used by `protocol_latency`, whose clients are in the ports' process, and by `protocol_cost`, whose are not.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from bench.serving import protocol_clients as clients
from bench.serving.protocol_clients import Dialect
from millpond.config.schema import TgiConfig
from millpond.serve.http.app import make_app
from millpond.serve.http.port import AppPort
from millpond.serve.http.tgi.app import make_tgi_app
from millpond.serve.http.tgi.settings import resolve_tgi
from millpond.serve.settings import ServeSettings
from tests.support.language_ports import MODEL, language_ports
from tests.support.pushed_engine import PushedEngine


@asynccontextmanager
async def all_ports(engine: PushedEngine) -> AsyncIterator[dict[str, str]]:
    """Where each port is, by the name of its dialect, while the block runs."""
    settings = ServeSettings()
    app = make_app(engine, settings)
    tgi = make_tgi_app(app.state.gateway, resolve_tgi(TgiConfig(), settings))

    async def drain(seconds: float) -> None:
        del seconds

    async with AsyncExitStack() as stack:
        ports = [
            AppPort(name, it, host="127.0.0.1", port=0, param="", drain=drain) for name, it in (("a", app), ("b", tgi))
        ]
        for port in ports:
            await port.start()
            stack.push_async_callback(port.stop)
        at = await stack.enter_async_context(language_ports(engine))
        yield {
            "openai": ports[0].address,
            "tgi": ports[1].address,
            "triton http": at.triton_http,
            "triton grpc": at.triton_grpc,
            "mindspore rest": at.mindspore_rest,
            "mindspore grpc": at.mindspore_grpc,
        }


def all_dialects(at: dict[str, str], model: str = MODEL) -> list[Dialect]:
    """How each of them is asked."""
    return [
        clients.openai(at["openai"], model),
        clients.tgi(at["tgi"]),
        clients.triton_http(at["triton http"], model),
        clients.triton_grpc(at["triton grpc"], model),
        clients.mindspore_rest(at["mindspore rest"], model),
        clients.mindspore_grpc(at["mindspore grpc"], model),
    ]
