"""`Spares`: workers that were started to learn what a model is like, kept until its first replica wants one."""

from __future__ import annotations

import asyncio

from millpond.serve.servables.backend import ModelFolder
from millpond.serve.workers.worker import Worker

LIFETIME_S = 60.0


class Spares:
    """At most one worker a folder, for a while."""

    def __init__(self) -> None:
        # By id of the folder they were loaded from, which is held so that no other gets its id.
        self._kept: dict[int, tuple[ModelFolder, Worker, asyncio.TimerHandle]] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def keep(self, folder: ModelFolder, worker: Worker) -> None:
        """Keeps a started worker."""
        timer = asyncio.get_running_loop().call_later(LIFETIME_S, self._drop, id(folder))
        self._kept[id(folder)] = (folder, worker, timer)

    def take(self, folder: ModelFolder) -> Worker | None:
        """Returns the folder's worker, which is the caller's from now on; None when there is none that lives."""
        kept = self._kept.pop(id(folder), None)
        if kept is None:
            return None
        kept[2].cancel()
        if kept[1].is_up:
            return kept[1]
        self._close(kept[1])
        return None

    def _drop(self, key: int) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self._close(kept[1])

    def _close(self, worker: Worker) -> None:
        task = asyncio.get_running_loop().create_task(worker.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
