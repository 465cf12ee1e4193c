"""The app around a scripted engine, and clients that speak to it without a socket."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx2
import pytest
from openai import AsyncOpenAI
from starlette.applications import Starlette

from millpond.inference.text import TextModel
from millpond.serve.http.app import make_app
from millpond.serve.settings import ServeSettings
from tests.support.scripted_engine import ScriptedEngine
from tests.support.tiny_checkpoints import make_text


@pytest.fixture(scope="session")
def text() -> TextModel:
    return make_text()


@pytest.fixture
async def engine(text: TextModel) -> ScriptedEngine:
    return ScriptedEngine(text)


@pytest.fixture
async def app(engine: ScriptedEngine) -> Starlette:
    return make_app(engine, ServeSettings())


@pytest.fixture
async def http(app: Starlette) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client


@pytest.fixture
def openai(http: httpx2.AsyncClient) -> AsyncOpenAI:
    return AsyncOpenAI(base_url="http://localhost/v1", api_key="none", http_client=http, max_retries=0)
