"""Which of several operators acts: the holder of a Lease.

A holder that does not renew in time stops acting before another may begin. Time is measured by our own clock from when
a change was seen, so that clocks need not agree. Owned by the operator's entry; knows nothing about jobs.

The library's own election is not used: it keeps the record in local time without a zone and ends the process on some
mistakes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from millpond.jobs.clusters.kubernetes.client import ApiError, KubernetesApi
from millpond.jobs.clusters.kubernetes.kinds import LEASES, Object

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LeaseSettings:
    """Where the Lease is and how fast it changes hands."""

    name: str = "millpond-operator"
    namespace: str = "millpond-system"
    duration_s: float = 15.0
    renew_every_s: float = 5.0


class Leader:
    """One candidate.

    Args:
        api: The API server.
        identity: Unique among the candidates: the pod's name and something random.
        settings: The Lease.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        api: KubernetesApi,
        identity: str,
        settings: LeaseSettings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.identity = identity
        self._api = api
        self._settings = settings
        self._clock = clock
        self._seen: tuple[str, str] | None = None  # holder and renewal, as last seen, and when that was
        self._seen_s = 0.0
        self._renewed_s = -1.0

    @property
    def is_leading(self) -> bool:
        """Whether the Lease is ours for certain: nobody else can have taken it yet."""
        spent_s = self._settings.duration_s * 2 / 3
        return self._renewed_s >= 0 and self._clock() < self._renewed_s + spent_s

    async def acquire(self) -> None:
        """Waits until the Lease is ours."""
        while not await self._try():
            await asyncio.sleep(self._settings.renew_every_s / 2)

    async def keep(self) -> None:
        """Renews; returns when the Lease is lost."""
        while self.is_leading:
            await asyncio.sleep(self._settings.renew_every_s)
            if not await self._try() and self._renewed_s < 0:
                return

    async def release(self) -> None:
        """Gives the Lease up, so that the next one need not wait."""
        lease = await self._api.get(LEASES, self._settings.namespace, self._settings.name)
        if lease is not None and lease.get("spec", {}).get("holderIdentity") == self.identity:
            lease["spec"]["holderIdentity"] = ""
            await self._api.replace(LEASES, lease)
        self._renewed_s = -1.0

    async def _try(self) -> bool:
        try:
            async with asyncio.timeout(self._settings.duration_s / 3):
                return await self._take()
        except (ApiError, TimeoutError) as error:
            _log.warning("The Lease %s: %s", self._settings.name, error or "no answer in time")
            return False

    async def _take(self) -> bool:
        """Creates, renews or takes over the Lease; False when it is another's or was changed meanwhile."""
        begun_s = self._clock()
        lease = await self._api.get(LEASES, self._settings.namespace, self._settings.name)
        try:
            if lease is None:
                await self._api.create(LEASES, self._body({}))
            elif not self._is_free(lease):
                self._renewed_s = -1.0
                return False
            else:
                metadata = {"resourceVersion": lease["metadata"]["resourceVersion"]}
                await self._api.replace(LEASES, self._body(lease.get("spec") or {}, metadata))
        except ApiError as error:
            if error.status == 409:
                return False
            raise
        self._renewed_s = begun_s
        return True

    def _is_free(self, lease: Object) -> bool:
        spec = lease.get("spec") or {}
        holder = spec.get("holderIdentity") or ""
        if holder in ("", self.identity):
            return True
        seen = (holder, str(spec.get("renewTime")))
        if seen != self._seen:
            self._seen, self._seen_s = seen, self._clock()
        return self._clock() >= self._seen_s + float(spec.get("leaseDurationSeconds") or self._settings.duration_s)

    def _body(self, old: Object, metadata: Object | None = None) -> Object:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        is_new = old.get("holderIdentity") != self.identity
        spec = {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": max(1, round(self._settings.duration_s)),
            "acquireTime": now if is_new else old.get("acquireTime", now),
            "renewTime": now,
            "leaseTransitions": int(old.get("leaseTransitions") or 0) + int(is_new and bool(old)),
        }
        name, namespace = self._settings.name, self._settings.namespace
        return {
            "apiVersion": LEASES.api_version,
            "kind": LEASES.kind,
            "metadata": {"name": name, "namespace": namespace} | (metadata or {}),
            "spec": spec,
        }
