"""A jobs directory with deployments of small real servers; nothing of it is left afterwards."""

from __future__ import annotations

import contextlib
import http.client
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from millpond.api.deployment import DeploymentStatus
from millpond.jobs.deployments.client import DeploymentsClient
from tests.integration.jobs.conftest import LocalRoom
from tests.support.postgres import location as location
from tests.support.postgres import server as server

SERVER = Path(__file__).with_name("small_server.py")
QUICK = "ready: {path: /ready, interval: 0.1s, timeout: 5s}"


class DeploymentRoom(LocalRoom):
    """Applies deployments and waits for them."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.place.root.mkdir(exist_ok=True)
        self.place.settings.write_text("slots: 64")
        self.deployments = DeploymentsClient(self.place.root, self.environment, str(self.work))

    def apply(self, name: str, more: str = "", env: str = "{}") -> DeploymentStatus:
        """Applies a deployment of the small server."""
        text = f"{{name: {name}, run: [{sys.executable}, -S, {SERVER}], {QUICK}, cpus: 0.1, env: {env}{more}}}"
        return self.deployments.apply(text)[0]

    def wait_for(
        self, name: str, until: Callable[[DeploymentStatus], bool], timeout_s: float = 60.0
    ) -> DeploymentStatus:
        status = self.deployments.wait(name, until, timeout_s)
        assert until(status), status
        return status

    def settle(self, name: str) -> DeploymentStatus:
        return self.wait_for(name, lambda status: status.is_settled)

    def give_up(self) -> None:
        """Asks every deployment to end, and does not wait for it: each that stays takes time from the next test."""
        names = [status.uid for status in self.deployments.deployments()]
        if names:
            self.deployments.delete(names, wait_s=0)

    def close(self) -> None:
        with contextlib.suppress(IndexError):
            names = [status.uid for status in self.deployments.deployments()]
            if names:
                assert all(self.deployments.delete(names))
        self.deployments.close()
        super().close()


def get(address: str, path: str = "/version", headers: dict[str, str] | None = None) -> tuple[int, bytes, str]:
    """Status, body and version of one answer."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    try:
        connection.request("GET", path, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.getheader("X-Millpond-Version", "")
    finally:
        connection.close()


class Traffic:
    """Clients that stream without a pause and write down what was not as it should be."""

    def __init__(self, address: str, clients: int = 6, path: str = "/stream?pieces=5&wait=0.02") -> None:
        self.lost: list[object] = []
        self.done: Counter[str] = Counter()
        self._address, self._path = address, path
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(60)

    def wait(self, count: int) -> None:
        """Waits for so many more answers."""
        target, deadline = self.done.total() + count, time.monotonic() + 60
        while self.done.total() < target:
            assert time.monotonic() < deadline, "no answers come"
            time.sleep(0.02)

    def _run(self) -> None:
        while not self._is_over.is_set():
            try:
                status, body, version = get(self._address, self._path)
                if (status, body) != (200, b"0\n1\n2\n3\n4\n"):
                    self.lost.append((status, body))
                self.done[version] += 1
            except (OSError, http.client.HTTPException) as error:
                self.lost.append(error)


@pytest.fixture(scope="package")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeploymentRoom]:
    """One controller for all tests; a deployment is a test's own."""
    made = DeploymentRoom(tmp_path_factory.mktemp("deployments"))
    yield made
    made.close()


@pytest.fixture(autouse=True)
def no_deployment_outlives_its_test(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "rooms" in request.fixturenames:
        request.getfixturevalue("rooms").give_up()
