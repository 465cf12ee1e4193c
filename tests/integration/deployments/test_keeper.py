"""The keeper's loop on a real store and a real controller, turn by turn."""

from __future__ import annotations

import asyncio
import sqlite3
import time

import pytest

from millpond.jobs.deployments.keeper import Keeper
from millpond.jobs.deployments.spec import load_deployments
from millpond.jobs.deployments.store import DeploymentStore
from millpond.jobs.deployments.wish import UID_LABEL, make_wish
from tests.integration.deployments.conftest import DeploymentRoom


def test_a_replica_whose_submission_broke_off_is_taken_up(
    rooms: DeploymentRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    (spec,) = load_deployments("{name: breaks, run: [sleep, 600], cpus: 0.1, replicas: 2, port: 80}")
    wish = make_wish(spec, "breaks-uid", time.time(), str(rooms.work), rooms.environment)
    store = DeploymentStore(rooms.place.jobs_database)
    store.add([wish])
    read, broken = DeploymentStore.jobs, []

    def read_or_break(self: DeploymentStore, uids: list[str]) -> object:
        if uids and not broken:
            broken.append(uids)
            raise sqlite3.OperationalError("database is locked")
        return read(self, uids)

    async def live() -> None:
        keeper = Keeper(rooms.place.root, wish)
        monkeypatch.setattr(DeploymentStore, "jobs", read_or_break)
        try:
            for _ in range(3):
                await keeper.turn()
                await asyncio.sleep(0.6)  # past the wait after a start that failed
        finally:
            keeper.close()

    asyncio.run(live())
    assert len(broken) == 1
    mine = [state.spec.name for state in store.servers() if state.spec.labels.get(UID_LABEL) == wish.uid]
    rooms.client.delete(mine)
    store.bury(wish.uid, time.time())
    store.close()
    assert len(mine) == 2
