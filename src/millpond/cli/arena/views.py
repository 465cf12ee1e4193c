"""Arena's tables and documents, made from `JobStatus`. Pure; the time is passed in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from millpond.cli.jobs.tables import age, table

if TYPE_CHECKING:
    from millpond.api.job import JobStatus, ReplicaStatus
    from millpond.jobs.looking import NodeStatus
    from millpond.jobs.store import EventRecord

LIST_HEAD = ("NAME", "STATUS", "TRAINER", "DURATION", "GPU(Requested)", "GPU(Allocated)", "NODE")
GET_HEAD = ("NAME", "STATUS", "AGE", "IS_CHIEF", "GPU(Requested)", "NODE")
TOP_JOB_HEAD = ("NAME", "STATUS", "TRAINER", "AGE", "GPU(Requested)", "GPU(Allocated)", "NODE")
TOP_NODE_HEAD = ("NAME", "IPADDRESS", "ROLE", "STATUS", "GPU(Total)", "GPU(Allocated)")
_STATUS = {"Created": "PENDING", "Queuing": "PENDING", "Running": "RUNNING", "Restarting": "RUNNING",
           "Succeeded": "SUCCEEDED", "Failed": "FAILED"}  # fmt: skip


def arena_status(job: JobStatus) -> str:
    """PENDING, RUNNING, SUCCEEDED or FAILED."""
    return _STATUS[job.phase.value]


def duration_s(job: JobStatus, now_s: float) -> float:
    """From submission to the end, or to now."""
    return (job.finished_s or now_s) - job.created_s


def list_table(jobs: Sequence[JobStatus], now_s: float, *, with_namespace: bool = False) -> str:
    """The table of `arena list`."""
    rows = [(*([job.namespace] if with_namespace else []), *_list_row(job, now_s)) for job in jobs]
    return table((*(["NAMESPACE"] if with_namespace else []), *LIST_HEAD), rows)


def top_jobs(jobs: Sequence[JobStatus], now_s: float) -> str:
    """The table of `arena top job` and the sums under it."""
    requested = sum(job.requested_devices for job in jobs)
    allocated = sum(job.allocated_devices for job in jobs)
    body = table(TOP_JOB_HEAD, [_list_row(job, now_s) for job in jobs])
    share = f" ({100 * allocated / requested:.1f}%)" if requested else ""
    return f"{body}\n\n\nTotal Allocated/Requested GPUs of Training Jobs: {allocated}/{requested}{share}"


def _list_row(job: JobStatus, now_s: float) -> tuple[object, ...]:
    nodes = sorted({replica.node for replica in job.replicas if replica.node and replica.phase.value == "Running"})
    return (
        job.name, arena_status(job), trainer(job).upper(), age(duration_s(job, now_s)), job.requested_devices,
        job.allocated_devices if arena_status(job) == "RUNNING" else "N/A", ",".join(nodes) or "N/A",
    )  # fmt: skip


def trainer(job: JobStatus) -> str:
    """Arena's name of the kind."""
    return job.kind.lower()


def get_text(job: JobStatus, now_s: float, events: Sequence[EventRecord] = (), *, with_gpus: bool = False) -> str:
    """What `arena get` prints."""
    lines = [
        f"Name:      {job.name}",
        f"Status:    {arena_status(job)}",
        f"Namespace: {job.namespace}",
        f"Priority:  {job.priority or 'N/A'}",
        f"Trainer:   {trainer(job).upper()}",
        f"Duration:  {age(duration_s(job, now_s))}",
    ]
    if job.waiting:
        lines.append(f"Waiting:   {job.waiting}")
    rows = [
        (r.name, r.phase.value, age((r.finished_s or now_s) - (r.started_s or now_s)), str(r.is_chief).lower(),
         r.devices, r.node or "N/A")
        for r in job.replicas
    ]  # fmt: skip
    lines += ["", "Instances:", table(GET_HEAD, rows, ruler=True, indent="  ")]
    if with_gpus:
        lines += ["", "GPUs:", _gpu_table(job.replicas)]
        lines += ["", f"Allocated/Requested GPUs of Job: {job.allocated_devices}/{job.requested_devices}"]
    if events:
        seen = [("controller", e.kind, age(now_s - e.at_s), f"[{e.reason}] {e.message}") for e in events]
        lines += ["", "Events:", table(("SOURCE", "TYPE", "AGE", "MESSAGE"), seen, ruler=True, indent="  ")]
    if job.tensorboard_url:
        lines += ["", "Tensorboard:", f"Your tensorboard will be available on: {job.tensorboard_url}"]
    return "\n".join(lines)


def _gpu_table(replicas: Iterable[ReplicaStatus]) -> str:
    head = ("INSTANCE", "NODE(IP)", "GPU(Requested)", "GPU(IndexId)", "GPU(DutyCycle)", "GPU Memory(Used/Total)")
    rows = [(r.name, r.node or "N/A", r.devices, ",".join(r.device_ids) or "N/A", "N/A", "N/A") for r in replicas]
    return table(head, rows, ruler=True, indent="  ")


def job_document(job: JobStatus, now_s: float) -> dict[str, object]:
    """A job under the keys of `arena list -o json`."""
    chiefs = [replica.name for replica in job.replicas if replica.is_chief]
    return {
        "name": job.name,
        "namespace": job.namespace,
        "duration": f"{int(duration_s(job, now_s))}s",
        "status": arena_status(job),
        "trainer": trainer(job),
        "tensorboard": job.tensorboard_url,
        "chiefName": chiefs[0] if chiefs else "",
        "instances": [
            {
                "ip": "127.0.0.1" if replica.node else "",
                "status": replica.phase.value,
                "name": replica.name,
                "age": f"{int((replica.finished_s or now_s) - (replica.started_s or now_s))}s",
                "node": replica.node or "N/A",
                "nodeIP": "127.0.0.1" if replica.node else "N/A",
                "chief": replica.is_chief,
                "requestGPUs": replica.devices,
                "gpuMetrics": {},
            }
            for replica in job.replicas
        ],
        "priority": str(job.priority) if job.priority else "N/A",
        "requestGPUs": job.requested_devices,
        "allocatedGPUs": job.allocated_devices,
        "waiting": job.waiting,
    }


def top_nodes(nodes: Sequence[NodeStatus]) -> str:
    """The table of `arena top node` and the sums under it."""
    rows = [(n.name, n.address, "<none>", "Ready" if n.is_up else "NotReady", n.devices, n.used_devices) for n in nodes]
    total, used = sum(n.devices for n in nodes), sum(n.used_devices for n in nodes)
    share = f" ({100 * used / total:.1f}%)" if total else ""
    body = table(TOP_NODE_HEAD, rows)
    ruler = "-" * max(len(line) for line in body.splitlines())
    lines = [body, ruler, "Allocated/Total GPUs In Cluster:", f"{used}/{total}{share}"]
    if not total:
        lines.append("No accelerators are declared; say `devices: N` in cluster.yaml. Processors are counted as slots.")
    slots, busy = sum(n.cpus for n in nodes), sum(n.used_cpus for n in nodes)
    return "\n".join([*lines, "Allocated/Total Slots In Cluster:", f"{busy:g}/{slots:g}"])


def node_details(nodes: Sequence[NodeStatus]) -> str:
    """What `arena top node -d` prints."""
    blocks = []
    for node in nodes:
        kind = "GPUExclusive" if node.devices else "none"
        block = [
            f"Name:    {node.name}", f"Status:  {'Ready' if node.is_up else 'NotReady'}", "Role:    <none>",
            f"Type:    {kind}", f"Address: {node.address}", "Instances:",
            *(f"  {name}" for name in node.instances or ("<none>",)), "GPU Summary:",
            f"  Total GPUs:     {node.devices} {node.device_type}".rstrip(), f"  Allocated GPUs: {node.used_devices}",
            f"  Slots:          {node.used_cpus:g}/{node.cpus:g}",
        ]  # fmt: skip
        blocks.append("\n".join(block))
    return "\n\n".join(blocks)
