"""A copy of all objects of one kind, kept up to date by listing once and watching from there.

Owns the copy. A watch that ends is taken up where it ended; one whose version has expired (410), or that fails
otherwise, starts with a new list, and what that list lacks counts as deleted, so that no gap loses a deletion. Knows
nothing about what the objects mean. Owned by the operator.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from millpond.jobs.clusters.kubernetes.client import ApiError, KubernetesApi
from millpond.jobs.clusters.kubernetes.kinds import Object, ResourceKind

_FIRST_WAIT_S, _LAST_WAIT_S = 0.2, 30.0
_ABSENT_S = 60.0
_log = logging.getLogger(__name__)


class Reflector:
    """Objects of a kind by namespace and name.

    Args:
        api: The API server.
        kind: What to watch.
        changed: Called with the object as it was and as it is; None for there was none and for it is gone.
        selector: Only objects with these labels.
        namespace: Only this namespace; empty: all.
    """

    def __init__(
        self,
        api: KubernetesApi,
        kind: ResourceKind,
        changed: Callable[[Object | None, Object | None], None],
        *,
        selector: str = "",
        namespace: str = "",
    ) -> None:
        self.objects: dict[tuple[str, str], Object] = {}
        self.is_synced = asyncio.Event()
        self._api = api
        self._kind = kind
        self._changed = changed
        self._selector = selector
        self._namespace = namespace
        self._version = ""

    async def run(self) -> None:
        """Keeps the copy, for ever."""
        wait_s = _FIRST_WAIT_S
        while True:
            try:
                if not self._version:
                    await self._list()
                await self._watch()
                wait_s = _FIRST_WAIT_S
                await asyncio.sleep(0)  # a server that ends every stream at once must not hold us here
            except ApiError as error:
                self._version = ""
                if error.status == 404:  # the kind is not installed; it may be later
                    self.is_synced.set()
                    await asyncio.sleep(_ABSENT_S)
                elif error.status != 410:
                    _log.warning("Watching %s: %s", self._kind.plural, error)
                    await asyncio.sleep(wait_s)
                    wait_s = min(2 * wait_s, _LAST_WAIT_S)

    def put(self, found: Object) -> None:
        """Takes in what a request of our own returned, unless the watch is further already."""
        held = self.objects.get(key_of(found))
        if held is None or _is_newer(found, held):
            self.objects[key_of(found)] = found

    async def _list(self) -> None:
        items, version = await self._api.list(self._kind, self._namespace, self._selector)
        gone = dict(self.objects)
        for item in items:
            gone.pop(key_of(item), None)
            self._take(item)
        for key, old in gone.items():
            del self.objects[key]
            self._changed(old, None)
        self._version = version
        self.is_synced.set()

    async def _watch(self) -> None:
        stream = self._api.watch(self._kind, self._version, self._namespace, self._selector)
        async for event, found in stream:
            version = found["metadata"].get("resourceVersion", "")
            if event == "DELETED":
                old = self.objects.pop(key_of(found), None)
                self._changed(old or found, None)
            elif event != "BOOKMARK":
                self._take(found)
            self._version = version or self._version

    def _take(self, found: Object) -> None:
        old = self.objects.get(key_of(found))
        self.objects[key_of(found)] = found
        if old is None or old["metadata"].get("resourceVersion") != found["metadata"].get("resourceVersion"):
            self._changed(old, found)


def key_of(found: Object) -> tuple[str, str]:
    """Namespace (empty for kinds without) and name."""
    metadata = found["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


def _is_newer(found: Object, held: Object) -> bool:
    """Versions are opaque to clients, but compare as numbers on every server there is; since 1.35 that is promised."""
    ours, theirs = (str(item["metadata"].get("resourceVersion", "")) for item in (found, held))
    return not (ours.isdigit() and theirs.isdigit()) or int(ours) > int(theirs)
