"""The TGI app around a scripted engine, in both forms, and clients that speak to it without a socket."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx2
import pytest

from millpond.serve.gateway import Gateway
from millpond.serve.http.tgi.app import make_tgi_app
from millpond.serve.http.tgi.settings import TgiSettings
from millpond.serve.settings import ServeSettings
from tests.support.scripted_engine import ScriptedEngine


@pytest.fixture
async def gateway(engine: ScriptedEngine) -> AsyncIterator[Gateway]:
    gateway = Gateway(engine, ServeSettings())
    yield gateway
    gateway.close()


@pytest.fixture
async def tgi(gateway: Gateway) -> AsyncIterator[httpx2.AsyncClient]:
    async with make_client(gateway, TgiSettings()) as client:
        yield client


@pytest.fixture
async def strict(gateway: Gateway) -> AsyncIterator[httpx2.AsyncClient]:
    async with make_client(gateway, TgiSettings(is_strict=True)) as client:
        yield client


@pytest.fixture
def connect(gateway: Gateway) -> object:
    """Makes a client of a port with other settings."""
    return lambda **changes: make_client(gateway, TgiSettings(**changes))


def make_client(gateway: Gateway, settings: TgiSettings) -> httpx2.AsyncClient:
    transport = httpx2.ASGITransport(make_tgi_app(gateway, settings))
    return httpx2.AsyncClient(transport=transport, base_url="http://localhost")
