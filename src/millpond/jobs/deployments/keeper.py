"""The process of one deployment: its port, its replicas' probes, and the loop that makes it what the user wants.

It is itself a job, so the jobs' controller starts it again when it dies, and it goes on while no controller runs. What
it knows it finds again: the wish and the jobs of its replicas are in the store. Started by
`python -m millpond.jobs.deployments.keeper ROOT UID`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import os
import resource
import signal
import socket
import sqlite3
import sys
import time
from pathlib import Path

from aiohttp import web

from millpond.api.deployment import DeploymentPhase, DeploymentStatus
from millpond.api.job import CleanPolicy, JobSpec
from millpond.base.errors import MillpondError
from millpond.jobs.client import JobsClient
from millpond.jobs.deployments.balance import Backend, Balancer
from millpond.jobs.deployments.fleet import Fleet, Todo
from millpond.jobs.deployments.proxy import OWN_PATH, Proxy, refusal
from millpond.jobs.deployments.servers import Prober, Replica, adopt
from millpond.jobs.deployments.store import DeploymentStore
from millpond.jobs.deployments.wish import REVISION_LABEL, UID_LABEL, VERSION_LABEL, Wish
from millpond.jobs.service import JobsPlace
from millpond.jobs.state import JobState
from millpond.jobs.store import EventRecord, JobStore

_TURN_S = 0.1
_RETRY_S = 1.0
_SAY_EVERY_S = 0.5  # counters change all the time
_SAY_AGAIN_S = 2.0  # so that readers see that somebody is there
_REVIVE_EVERY_S = 5.0
_DRAIN_S = 8.0  # less than the grace that a job has
_TERMINATED = 143
_BACKLOG = 1024
_LOCAL = "127.0.0.1"
_MAX_HEAD = 1 << 16
_LOOK_EVERY_S = 1.0  # at the least: autoscaling, and what time alone brings
_ASK_EVERY_S = 0.5  # a database that does not tell by itself that something changed
_MOST_FILES = 1 << 16
_OTHER_FILES = 64  # beside a connection to the client and one to the replica for each request
_TROUBLE = (MillpondError, sqlite3.OperationalError)  # of the store; it is tried again


class Keeper:
    """Owns one deployment.

    Args:
        root: The jobs directory.
        wish: What the user wants, as found in the store.
    """

    def __init__(self, root: Path, wish: Wish) -> None:
        place = JobsPlace(root)
        self._events = JobStore(place.jobs_database)
        self._store = DeploymentStore(place.jobs_database)
        self._jobs = JobsClient(root, wish.submit_env, wish.submit_dir)
        self._balancer = Balancer(wish.spec.gateway)
        self._fleet = Fleet(wish, self._balancer, self._store.status(wish.uid), time.time)
        self._proxy = Proxy(self._balancer, self._unreachable)
        self._prober = Prober(self._probed, time.time)
        self._stop = asyncio.Event()
        self._wake = asyncio.Event()
        self._said: DeploymentStatus | None = None
        self._said_s = self._revived_s = 0.0
        self._open_requests = self._most_requests = 0
        self._is_unsure = True  # replicas may be there that are not known
        self._is_calm = False  # all is as it should be: only news can change that
        self._mark: int | None = None
        self._turned_s = 0.0

    async def run(self) -> int:
        """Serves until the deployment is deleted (0) or a signal comes (143)."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        gateway = self._fleet.wish.spec.gateway
        self._most_requests = max(_raise_file_limit() // 2 - _OTHER_FILES, _OTHER_FILES)
        family = socket.AF_INET6 if ":" in gateway.host else socket.AF_INET
        listener = socket.create_server((gateway.host, gateway.port), family=family, backlog=_BACKLOG)
        await self._proxy.start()
        await self._prober.start()
        server = web.Server(self._handle, handler_cancellation=True, access_log=None, keepalive_timeout=75.0,
                            max_line_size=_MAX_HEAD, max_field_size=_MAX_HEAD)  # fmt: skip
        serving = await loop.create_server(server, sock=listener)
        try:
            while not self._stop.is_set():
                try:
                    if self._is_due():
                        await self.turn()
                except _TROUBLE as error:
                    # Requests pass while the store cannot be reached; nothing was decided, so nothing is lost.
                    print(f"{error} It is tried again.", file=sys.stderr, flush=True)
                    await asyncio.sleep(_RETRY_S)
                    continue
                if self._fleet.wish.is_deleting and self._fleet.is_empty:
                    await asyncio.to_thread(self._store.bury, self._fleet.wish.uid, time.time())
                    return 0
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_TURN_S):
                        await self._wake.wait()
            serving.close()
            await self._wait_idle()
            return _TERMINATED
        finally:
            serving.close()
            await server.shutdown(1.0)
            await self._prober.close()
            await self._proxy.close()
            self.close()

    def close(self) -> None:
        """Closes the stores."""
        self._jobs.close()
        self._store.close()
        self._events.close()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path.startswith(OWN_PATH):
            if request.path == f"{OWN_PATH}metrics":
                return web.Response(text=self._proxy.page(self._balancer.backends))
            if request.path == f"{OWN_PATH}health":
                return web.json_response({"status": "ok"})
            return refusal(404, "not_found", "The gateway has health and metrics.")
        if self._open_requests >= self._most_requests:
            return refusal(503, "gateway_busy", f"{self._open_requests} requests are open already.")
        self._open_requests += 1
        try:
            return await self._proxy.handle(request)
        finally:
            self._open_requests -= 1

    async def _wait_idle(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_S):
                while self._open_requests:
                    await asyncio.sleep(0.05)

    # The loop --------------------------------------------------------------------------------------------------

    def _is_due(self) -> bool:
        """Whether to look: always while something is on its way, else when there may be news."""
        elapsed_s = time.monotonic() - self._turned_s
        mark = self._store.change_mark() if self._is_calm else None
        is_news = self._wake.is_set() or (mark != self._mark if mark is not None else elapsed_s >= _ASK_EVERY_S)
        if self._is_calm and not is_news and elapsed_s < _LOOK_EVERY_S:
            return False
        self._wake.clear()
        self._mark = self._store.change_mark()
        self._turned_s = time.monotonic()
        return True

    async def turn(self) -> None:
        """One look at the store, and what follows from it."""
        self._is_calm = False
        if self._is_unsure:
            for state in await asyncio.to_thread(self._store.servers):
                self._adopt(state)
            self._is_unsure = False
        wish, jobs = await asyncio.to_thread(self._look)
        if wish is not None:
            self._fleet.take_wish(wish)
        for uid in [uid for uid in self._fleet.replicas if uid not in jobs]:
            self._fleet.lost_job(uid)
        for state, explanation in jobs.values():
            self._fleet.take_job(state, explanation)
        for replica in self._fleet.replicas.values():
            if replica.started_s is not None and replica.task is None:
                self._prober.watch(replica)
        todo = self._fleet.decide()
        new = await asyncio.to_thread(self._carry_out, todo)
        for state in new:
            self._add(state)
        status = self._fleet.status(self._proxy.counts)
        await self._say(status)
        self._is_calm = status.phase is DeploymentPhase.READY and not (todo.starts or todo.stops or self._is_unsure)

    def _look(self) -> tuple[Wish | None, dict[str, tuple[JobState, dict[str, object]]]]:
        """News from the store, in a thread."""
        wish = self._store.wish(self._fleet.wish.uid, self._fleet.wish.generation)
        now_s = time.monotonic()
        if now_s >= self._revived_s + _REVIVE_EVERY_S:
            self._revived_s = now_s
            try:
                self._jobs.revive()
            except MillpondError as error:
                print(error, file=sys.stderr, flush=True)
        return wish, self._store.jobs(list(self._fleet.replicas))

    def _carry_out(self, todo: Todo) -> list[JobState]:
        """Submits and deletes jobs, in a thread. Returns the jobs that are new. What fails is decided again."""
        wish = self._fleet.wish
        made: list[JobState] = []
        if todo.stops:
            try:
                self._jobs.delete(todo.stops, wait_s=0.0)
            except _TROUBLE as error:
                print(error, file=sys.stderr, flush=True)
                self._fleet.stop_again(todo.stops)
        if todo.starts:
            self._is_unsure = True  # until what was submitted is known
            try:
                specs = [self._server_spec(wish, version, revision) for version, revision in todo.starts]
                statuses = self._jobs.submit_specs(specs)
                found = self._store.jobs([status.uid for status in statuses])
                made = [found[status.uid][0] for status in statuses]
                self._is_unsure = False
            except _TROUBLE as error:
                print(error, file=sys.stderr, flush=True)
        if todo.events:
            now_s = time.time()
            try:
                with self._events.transaction():
                    self._events.add_events((wish.uid, EventRecord(now_s, *event)) for event in todo.events)
            except _TROUBLE as error:
                print(error, file=sys.stderr, flush=True)
        return made

    def _server_spec(self, wish: Wish, version: str, revision: int) -> JobSpec:
        found = next(item for item in wish.revisions[version] if item.number == revision)
        return JobSpec(
            name=f"{wish.spec.name}-{version}-{revision}-{os.urandom(3).hex()}",
            framework="serving",
            roles=(found.template.role,),
            namespace=wish.spec.namespace,
            tenant=wish.spec.tenant,
            priority=wish.spec.priority,
            clean_policy=CleanPolicy.RUNNING,
            labels={
                **wish.spec.labels,
                UID_LABEL: wish.uid,
                VERSION_LABEL: version,
                REVISION_LABEL: str(revision),
            },
        )

    async def _say(self, status: DeploymentStatus) -> None:
        """Writes how it goes: changes soon, counters now and then, and that somebody is there."""
        now_s = time.monotonic()
        is_news = self._said is None or _plain(status) != _plain(self._said)
        waits_s = _SAY_EVERY_S if is_news and status.phase is getattr(self._said, "phase", None) else 0.0
        if now_s >= self._said_s + (waits_s if is_news else _SAY_AGAIN_S):
            self._said, self._said_s = status, now_s
            await asyncio.to_thread(self._store.say, status)

    # Replicas --------------------------------------------------------------------------------------------------

    def _adopt(self, state: JobState) -> None:
        """Takes up a replica of an earlier keeper, or one whose submission broke off."""
        labels = state.spec.labels
        is_mine = labels.get(UID_LABEL) == self._fleet.wish.uid and VERSION_LABEL in labels
        if is_mine and state.uid not in self._fleet.replicas:
            self._add(state)

    def _add(self, state: JobState) -> None:
        wish, labels = self._fleet.wish, state.spec.labels
        had = wish.revisions.get(labels[VERSION_LABEL], ())
        number = int(labels[REVISION_LABEL])
        known = [revision.template for revision in had if revision.number == number]
        template = known[0] if known else next(iter(wish.revisions.values()))[-1].template
        replica = adopt(state, dataclasses.replace(template, role=state.spec.roles[0]), _LOCAL, time.time())
        replica.take_job(state, {}, time.time())
        self._fleet.add(replica)

    def _probed(self, replica: Replica) -> None:
        self._fleet.probed(replica)
        self._wake.set()

    def _unreachable(self, backend: Backend) -> None:
        self._fleet.unreachable(backend.uid)
        self._wake.set()


def _raise_file_limit() -> int:
    """Lets this process have as many files open as it may, and returns how many that are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= _MOST_FILES:
        return _MOST_FILES
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most


def _plain(status: DeploymentStatus) -> DeploymentStatus:
    """A status without the time it was made at, to compare."""
    return dataclasses.replace(status, seen_s=0.0)


def main() -> int:
    """Keeps the deployment that the arguments name."""
    parser = argparse.ArgumentParser(description="Keeps one deployment.")
    parser.add_argument("root", type=Path)
    parser.add_argument("uid")
    arguments = parser.parse_args()
    store = DeploymentStore(JobsPlace(arguments.root).jobs_database)
    wish = store.wish(arguments.uid)
    store.close()
    if wish is None:
        return 0
    return asyncio.run(_keep(arguments.root, wish))


async def _keep(root: Path, wish: Wish) -> int:
    return await Keeper(root, wish).run()


if __name__ == "__main__":
    sys.exit(main())
