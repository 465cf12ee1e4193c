"""Debian's Chromium on the chat page, whose server runs in a thread around a scripted engine."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TypeVar

import pytest
import uvicorn
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from millpond.serve.http.app import make_app
from millpond.serve.settings import ServeSettings
from tests.support.scripted_engine import ScriptedEngine
from tests.support.tiny_checkpoints import make_text

T = TypeVar("T")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


class PageServer:
    """The app on a port of its own, on a loop of its own.

    Attributes:
        engine: What answers; change it through `call`, which runs on the server's loop.
    """

    def __init__(self, settings: ServeSettings, *, is_loaded: bool = True) -> None:
        self.engine = ScriptedEngine(make_text())
        self._app = make_app(self.engine if is_loaded else None, settings)
        self._server = uvicorn.Server(
            uvicorn.Config(self._app, port=0, lifespan="off", ws="none", log_level="error", timeout_graceful_shutdown=1)
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._started = threading.Event()
        self._thread.start()
        assert self._started.wait(20)
        self.url = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"

    def call(self, work: Callable[[], T]) -> T:
        """Runs something on the server's loop."""
        result: Future[T] = Future()
        self._loop.call_soon_threadsafe(lambda: result.set_result(work()))
        return result.result(10)

    def finish_loading(self) -> None:
        """Puts the engine in."""
        self.call(lambda: setattr(self._app.state.gateway, "engine", self.engine))

    def close(self) -> None:
        """Ends the server."""
        self._server.should_exit = True
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)

        async def serve() -> None:
            serving = asyncio.create_task(self._server.serve())
            while not self._server.started:
                await asyncio.sleep(0.01)
            self._started.set()
            await serving

        self._loop.run_until_complete(serve())
        self._loop.close()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium")
    assert path is not None, "Chromium is not installed (Debian: apt-get install chromium)"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def server() -> Iterator[PageServer]:
    server = PageServer(ServeSettings())
    yield server
    server.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1100, "height": 760})
    context.set_default_timeout(15_000)
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext, server: PageServer) -> Page:
    """The page, once it knows that the model is ready."""
    page = context.new_page()
    open_page(page, server.url)
    return page


def open_page(page: Page, url: str) -> None:
    """Opens the page and waits for the model."""
    page.goto(url)
    page.wait_for_selector('#model[data-state="ready"]')


def ask(page: Page, text: str) -> None:
    """Sends a message as a person would."""
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def answer_text(page: Page) -> str:
    """Waits for the end of the answer and returns its text."""
    page.locator("#log[aria-busy=false] .message.assistant .stats").last.wait_for()
    return page.locator(".message.assistant .body").last.inner_text()
