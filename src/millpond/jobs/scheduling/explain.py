"""Why a job waits: one object that list, get, REST and pages share.

Owns the words and the numbers of an explanation. Reads the state and changes nothing that lasts; placing is tried on
the journal and rolled back.
"""

from __future__ import annotations

from millpond.jobs.scheduling.backfill import plan_start
from millpond.jobs.scheduling.dag import is_past
from millpond.jobs.scheduling.place import place_gang
from millpond.jobs.scheduling.state import ClusterState, FuturePlan, JobState
from millpond.jobs.scheduling.types import Explanation, JobStatus, Phase, RoleRequest, Shortage


def explain_job(state: ClusterState, job: JobState, now_s: float, position: int | None) -> Explanation:
    """Explains one job."""
    job_id = job.request.job_id
    if job.status is not JobStatus.PENDING:
        return Explanation(job_id, job.status, _holding_message(job))
    quota = state.quota.shortage(job.request.tenant, job.demand)
    shortages = [] if quota is None else [quota]
    mark = state.cells.mark()
    fits = place_gang(state.cells, job.request, state.quota.may_take(job.request.tenant)) is not None
    state.cells.rollback(mark)
    if not fits:
        shortages += _lacking(state, job)
    plan = job.plan or plan_start(state, job, now_s)
    if plan is None:
        details = " ".join(shortage.detail for shortage in shortages)
        message = (
            f"It does not fit: even with every other job gone this cluster and quota cannot hold it. {details}".rstrip()
        )
        return Explanation(job_id, job.status, message, tuple(shortages), (), position)
    if fits and quota is None:
        shortages.append(_behind(plan))
    holders = plan.holders or tuple(state.holders_of(plan.grains))
    start_s = plan.start_s if plan.start_s < float("inf") else None
    message = " ".join(shortage.detail for shortage in shortages) or "It is next."
    return Explanation(job_id, job.status, message, tuple(shortages), holders, position, start_s)


def _holding_message(job: JobState) -> str:
    match job.status:
        case JobStatus.RESERVED:
            waiting = [role for role in job.request.roles if not is_past(job.phases.get(role.name), Phase.RUNNING)]
            names = ", ".join(role.name for role in waiting)
            return f"All cells are reserved; still to start: {names}."
        case JobStatus.RUNNING:
            return "Every role was started."
        case JobStatus.LEAVING:
            return "It has to stop; its cells come back when its processes are gone."
        case _:
            return "It is over."


def _behind(plan: FuturePlan) -> Shortage:
    if plan.kind == "shape":
        return Shortage("links", "ring", 1, 0, "It could start now; a better wired shape soon ends it earlier.")
    if plan.kind == "eviction":
        return Shortage("eviction", "cells", 1, 0, "It waits until evicted jobs have left its cells.")
    return Shortage("order", "queue", 1, 0, "The free cells are kept for jobs before it, which it would delay.")


def _lacking(state: ClusterState, job: JobState) -> list[Shortage]:
    """Which role finds too little of what. Each role is looked at alone; if each fits alone, they do not together."""
    found = []
    for role in job.request.roles:
        shortage = _role_shortage(state, job, role)
        if shortage is not None:
            found.append(shortage)
    if not found:
        asked = job.demand.get("devices", 0.0)
        free = sum(node.free.bit_count() for node in state.cells.nodes if node.is_open)
        text = "Each role would fit alone, but not all of them at once, and a gang starts whole or not at all."
        found.append(Shortage("devices", "gang", asked, free, text))
    return found


def _role_shortage(state: ClusterState, job: JobState, role: RoleRequest) -> Shortage | None:
    need, selector = role.resources, job.request.selector
    nodes = [
        node
        for node in state.cells.nodes
        if node.is_open and all(pair in node.spec.labels for pair in selector)
    ]  # fmt: skip
    if selector and not nodes:
        labels = ", ".join("=".join(pair) for pair in selector)
        return Shortage("selector", role.name, role.replicas, 0, f"No node has the labels {labels}.")
    if need.devices and need.device_type is not None:
        nodes = [node for node in nodes if node.spec.device_type == need.device_type]
        if not nodes:
            return Shortage("devices", role.name, need.devices, 0, f"No node has devices of type {need.device_type}.")
    room = sum(node.fits(need, role.replicas) for node in nodes)
    if room >= role.replicas:
        return None
    kind = "devices" if need.devices else "cpus"
    if need.devices:
        by_devices = sum(node.free.bit_count() // need.devices for node in nodes)
        if by_devices >= role.replicas:
            kind = "cpus" if sum(_fit_cpus(node.cpu_milli, need.cpus) for node in nodes) < role.replicas else "memory"
    free = sum(node.free.bit_count() for node in nodes)
    largest = max((node.free.bit_count() for node in nodes), default=0)
    each = f"{need.devices} devices, {need.cpus:g} CPUs" if need.devices else f"{need.cpus:g} CPUs"
    text = f"Role {role.name} needs {role.replicas} x {each}; room for {room}"
    text += f" ({free} devices free, at most {largest} on one node)." if need.devices else "."
    return Shortage(kind, role.name, role.replicas, room, text)


def _fit_cpus(free_milli: int, cpus: float) -> int:
    return int(free_milli / 1000 // cpus) if cpus else 1 << 30
