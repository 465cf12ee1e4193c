"""Short conversations with an API server for code that is not asynchronous: each has a connection of its own.

Knows no kinds but pods, whose logs it reads. Called by the clients of jobs and of deployments.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator
from typing import Any, TypeVar

from millpond.api.job import JobNotFoundError
from millpond.jobs.clusters.kubernetes.client import KubernetesApi
from millpond.jobs.clusters.kubernetes.kinds import PODS

_T = TypeVar("_T")
Connect = Callable[[], Awaitable[KubernetesApi]]


class Talk:
    """Conversations with one cluster.

    Args:
        connect: Opens a connection.
    """

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._runner = asyncio.Runner()

    def close(self) -> None:
        """Ends everything."""
        self._runner.close()

    def run(self, act: Callable[[KubernetesApi], Coroutine[Any, Any, _T]]) -> _T:
        """One conversation."""

        async def conversation() -> _T:
            api = await self._connect()
            try:
                return await act(api)
            finally:
                await api.close()

        return self._runner.run(conversation())

    def log(
        self, namespace: str, pod: str, *, follow: bool = False, tail: int | None = None, fix: str = ""
    ) -> Iterator[bytes]:
        """What a pod's first container wrote, with `follow` until its end. `fix`: what to do when there is none."""
        source = self._log(namespace, pod, follow=follow, tail=tail, fix=fix)

        async def following() -> bytes | None:
            return await anext(source, None)

        try:
            while (piece := self._runner.run(following())) is not None:
                yield piece
        finally:
            self._runner.run(source.aclose())

    async def _log(
        self, namespace: str, name: str, *, follow: bool, tail: int | None, fix: str
    ) -> AsyncGenerator[bytes]:
        api = await self._connect()
        try:
            pod = await api.get(PODS, namespace, name)
            if pod is None:
                raise JobNotFoundError(f"There is no pod {name}.", fix=fix, param="instance")
            container = pod["spec"]["containers"][0]["name"]
            async for piece in api.read_log(namespace, name, container, follow=follow, tail=tail):
                yield piece
        finally:
            await api.close()
