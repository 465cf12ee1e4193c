"""For clusters that have a gang scheduler: its objects around our pods, and a scheduler of ours that steps back.

One gang a job, as everywhere here. These schedulers place a gang only when all its pods are there, so all are created
at once; the start order is kept inside the pods, by init containers that wait for the services of the roles before.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass

from millpond.jobs.clusters.kubernetes.documents import JobObject
from millpond.jobs.clusters.kubernetes.kinds import Object, ResourceKind, owner_of
from millpond.jobs.clusters.kubernetes.pods import ANYWHERE, ROLE, labels_of, replica_name
from millpond.jobs.scheduling.scheduler import Scheduler
from millpond.jobs.scheduling.types import (
    Cancelled,
    Decision,
    Event,
    Evicted,
    Explanation,
    Finished,
    GangRequest,
    JobStatus,
    Placement,
    Release,
    Reserve,
    Restored,
    StartFailed,
    Submitted,
)

VOLCANO = ResourceKind("scheduling.volcano.sh/v1beta1", "PodGroup", "podgroups")
KUBE_BATCH = ResourceKind("scheduling.incubator.k8s.io/v1alpha1", "PodGroup", "podgroups")
COSCHEDULING = ResourceKind("scheduling.x-k8s.io/v1alpha1", "PodGroup", "podgroups")
KUBERNETES = ResourceKind("scheduling.k8s.io/v1alpha2", "PodGroup", "podgroups")
_FOR_EVER_S = 1e10  # another scheduler decides when a gang starts


@dataclass(frozen=True, slots=True)
class GangScheduler:
    """One scheduler and its words.

    Attributes:
        scheduler: What goes into `spec.schedulerName`.
        wait_image: An image with a shell and `nslookup`, for keeping the start order.
    """

    name: str
    scheduler: str
    kind: ResourceKind | None
    group: Callable[[JobObject, int], Object]
    mark: Callable[[Object, JobObject], None]
    wait_image: str = "busybox:stable"

    def make(self, job: JobObject, uid: str) -> list[tuple[ResourceKind, Object]]:
        """The objects that must be there before the first pod."""
        if self.kind is None:
            return []
        metadata: Object = {"name": job.spec.name, "namespace": job.namespace, "labels": labels_of(job, uid)}
        metadata["ownerReferences"] = [owner_of(job.body)]
        body = {"apiVersion": self.kind.api_version, "kind": self.kind.kind, "metadata": metadata}
        return [(self.kind, body | {"spec": self.group(job, num_needed(job))})]

    def join(self, pod: Object, job: JobObject) -> Object:
        """The pod as a member of its job's gang."""
        pod = copy.deepcopy(pod)
        if pod["metadata"]["labels"].get(ROLE) == "aimaster":
            return pod  # it watches the others and is placed by itself
        pod["spec"]["schedulerName"] = self.scheduler
        self.mark(pod, job)
        self._wait(pod, job)
        return pod

    def _wait(self, pod: Object, job: JobObject) -> None:
        role = next((one for one in job.spec.roles if one.name.lower() == pod["metadata"]["labels"].get(ROLE)), None)
        upstream = [edge.role for edge in (role.after or () if role is not None else ())]
        present = [found for found in map(job.spec.role, upstream) if found is not None and found.replicas]
        if not present or job.spec.framework in ("mpi", "elasticdl"):
            return  # MPI's kubectl-delivery waits for the workers in the hostfile
        hosts = [replica_name(job, found.name, index) for found in present for index in range(found.replicas)]
        if job.spec.framework == "pytorch":
            hosts = hosts[:1]
        script = 'for host in "$@"; do until nslookup "$host"; do sleep 2; done; done'
        init = {"name": "start-order", "image": self.wait_image, "command": ["/bin/sh", "-c", script, "wait", *hosts]}
        pod["spec"]["initContainers"] = [init, *(pod["spec"].get("initContainers") or [])]


def num_needed(job: JobObject) -> int:
    """How many pods must be placed together."""
    members = sum(role.replicas for role in job.spec.roles if role.name != "AIMaster")
    return members if job.spec.min_available is None else min(members, job.spec.min_available)


def _volcano_group(job: JobObject, needed: int) -> Object:
    spec: Object = {"minMember": needed}
    spec |= {"queue": job.spec.tenant} if job.spec.tenant != job.namespace else {}
    spec |= {"priorityClassName": job.spec.priority_class} if job.spec.priority_class else {}
    return spec


def _volcano_mark(pod: Object, job: JobObject) -> None:
    pod["metadata"]["annotations"]["scheduling.k8s.io/group-name"] = job.spec.name


def _coscheduling_group(job: JobObject, needed: int) -> Object:
    return {"minMember": needed, "scheduleTimeoutSeconds": 600}


def _coscheduling_mark(pod: Object, job: JobObject) -> None:
    pod["metadata"]["labels"]["scheduling.x-k8s.io/pod-group"] = job.spec.name


def _kubernetes_group(job: JobObject, needed: int) -> Object:
    return {"schedulingPolicy": {"gang": {"minCount": needed}}}


def _kubernetes_mark(pod: Object, job: JobObject) -> None:
    pod["spec"]["schedulingGroup"] = {"podGroupName": job.spec.name}


def _no_group(job: JobObject, needed: int) -> Object:
    return {}


def _yunikorn_mark(pod: Object, job: JobObject) -> None:
    """YuniKorn has no object: every pod names its application and its task group, one of them lists all groups."""
    role = pod["metadata"]["labels"][ROLE]
    pod["metadata"]["labels"] |= {"applicationId": f"{job.namespace}-{job.spec.name}"}
    pod["metadata"]["labels"] |= {"queue": job.spec.tenant if "." in job.spec.tenant else f"root.{job.spec.tenant}"}
    annotations = pod["metadata"]["annotations"]
    annotations["yunikorn.apache.org/task-group-name"] = role
    annotations["yunikorn.apache.org/schedulingPolicyParameters"] = "gangSchedulingStyle=Soft"
    groups = []
    for one in job.spec.roles:
        if one.replicas and one.name != "AIMaster":
            asked: Object = {"cpu": f"{one.resources.cpus:g}"}
            asked |= {"memory": str(one.resources.memory_bytes)} if one.resources.memory_bytes else {}
            asked |= {"nvidia.com/gpu": str(one.resources.devices)} if one.resources.devices else {}
            groups.append({"name": one.name.lower(), "minMember": one.replicas, "minResource": asked})
    annotations["yunikorn.apache.org/task-groups"] = json.dumps(groups)


GANG_SCHEDULERS = {
    found.name: found
    for found in (
        GangScheduler("volcano", "volcano", VOLCANO, _volcano_group, _volcano_mark),
        GangScheduler("kube-batch", "kube-batch", KUBE_BATCH, _volcano_group, _volcano_mark),  # Volcano's ancestor
        GangScheduler("coscheduling", "scheduler-plugins-scheduler", COSCHEDULING, _coscheduling_group,
                      _coscheduling_mark),
        GangScheduler("yunikorn", "yunikorn", None, _no_group, _yunikorn_mark),
        GangScheduler("kubernetes", "default-scheduler", KUBERNETES, _kubernetes_group, _kubernetes_mark),
    )
}  # fmt: skip


class HandOverScheduler(Scheduler):
    """Stands where our scheduler stands, and lets every job start at once: another scheduler holds its pods back."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting: dict[str, GangRequest] = {}
        self._epochs: dict[str, int] = {}

    def apply(self, event: Event, now_s: float) -> None:
        """Notes who is there; machines and tenants are the other scheduler's business."""
        match event:
            case Submitted(request, epoch):
                self._waiting.setdefault(request.job_id, request)
                self._epochs.setdefault(request.job_id, epoch)
            case Restored(request, epoch):
                self._epochs[request.job_id] = epoch
            case Cancelled(job_id) | Finished(job_id) | Evicted(job_id) | StartFailed(job_id):
                self._waiting.pop(job_id, None)
            case _:
                pass

    def step(self, now_s: float) -> list[Decision]:
        """Every job that came since gets a place anywhere, and all its roles may start."""
        decisions: list[Decision] = []
        for job_id, request in self._waiting.items():
            epoch = self._epochs[job_id] = self._epochs[job_id] + 1
            placements = {
                role.name: tuple(Placement(ANYWHERE, (), index) for index in range(role.replicas))
                for role in request.roles
            }
            decisions.append(Reserve(job_id, epoch, placements, now_s + _FOR_EVER_S))
            decisions += [Release(job_id, epoch, role.name) for role in request.roles]
        self._waiting.clear()
        return decisions

    def explain(self, job_id: str, now_s: float) -> Explanation | None:
        """The other scheduler knows why its pods wait."""
        return Explanation(job_id, JobStatus.RESERVED, "Its pods wait for the cluster's own scheduler.")
