from __future__ import annotations

import asyncio
import time

from millpond.api.deployment import ServerPhase
from millpond.api.job import JobPhase, ReplicaPhase
from millpond.jobs.deployments.balance import Balancer
from millpond.jobs.deployments.fleet import Fleet
from millpond.jobs.deployments.servers import Prober, adopt
from millpond.jobs.deployments.spec import load_deployments
from millpond.jobs.deployments.wish import REVISION_LABEL, VERSION_LABEL, make_wish
from millpond.jobs.spec import load_jobs
from millpond.jobs.state import make_job_state


async def test_a_replica_whose_job_is_gone_is_not_probed_any_more() -> None:
    (spec,) = load_deployments("{name: a, run: x, port: 80, ready: {interval: 0.05s}}")
    wish = make_wish(spec, "uid", 0.0, "/", {})
    balancer = Balancer(wish.spec.gateway)
    fleet = Fleet(wish, balancer, None, time.time)
    (job,) = load_jobs(f"{{name: r, run: x, labels: {{{VERSION_LABEL}: v1, {REVISION_LABEL}: '1'}}}}")
    state = make_job_state(job, "replica", 0.0)
    template = next(iter(wish.revisions.values()))[-1].template
    replica = adopt(state, template, "127.0.0.1", time.time())
    fleet.add(replica)
    state.phase, state.replicas[0].phase, state.replicas[0].port = JobPhase.RUNNING, ReplicaPhase.RUNNING, 1
    fleet.take_job(state, {})
    assert replica.phase is ServerPhase.STARTING
    prober = Prober(fleet.probed, time.time)
    await prober.start()
    prober.watch(replica)
    assert replica.task is not None
    await asyncio.sleep(0.1)
    assert not replica.task.done()
    fleet.lost_job("replica")
    await asyncio.wait_for(replica.task, 10)
    await prober.close()
    assert fleet.is_empty
    assert balancer.backends == {}
