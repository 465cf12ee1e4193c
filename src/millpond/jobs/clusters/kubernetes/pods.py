"""The objects that a run of a job becomes: a pod, its service, a config map of files, rights for MPI's launcher.

Pure: from a job's object, its state and a `Run` to JSON. A pod is bound when it is created (`spec.nodeName`), carries
its attempt as a label, never restarts by itself, and keeps a finalizer until the controller has written down how it
ended; so an attempt runs at most once whatever happens to the operator. Called by `cluster`.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from millpond.api.job import RoleSpec
from millpond.jobs.clusters.base import Run, RunId
from millpond.jobs.clusters.kubernetes.documents import JobObject
from millpond.jobs.clusters.kubernetes.kinds import CONFIG_MAPS, PODS, SERVICES, Object, owner_of
from millpond.jobs.state import TENSORBOARD, JobState, ReplicaState, make_job_state

PREFIX = "jobs.millpond.io"
UID, ROLE, INDEX, ATTEMPT = (f"{PREFIX}/{name}" for name in ("uid", "role", "index", "attempt"))
DEVICES = f"{PREFIX}/devices"
TRACKED = f"{PREFIX}/tracked"
FILES_DIR = "/etc/millpond"
ANYWHERE = "(any)"  # the node of a replica that another scheduler places
_CODE_DIR = "/code"
_VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ASCEND_RT_VISIBLE_DEVICES")
_BOARD_PORT = 6006


@dataclass(frozen=True, slots=True)
class PodSettings:
    """How pods are made.

    Attributes:
        domain: The cluster's domain, put after `.svc`; empty: names as short as they work.
        device_resource: What a pod asks the kubelet for, for each accelerator, where our own form does not say.
        device_access: `env`: the accelerators are named to the container's runtime, and not asked of the kubelet.
            `plugin`: the kubelet's device plugin gives them out; ours are a wish, in an annotation.
        scheduler: The name in `spec.schedulerName`.
    """

    domain: str = ""
    device_resource: str = "nvidia.com/gpu"
    device_access: str = "env"
    device_variable: str = "NVIDIA_VISIBLE_DEVICES"
    scheduler: str = "millpond"
    git_image: str = "alpine/git:latest"
    kubectl_image: str = "kubedl/kubectl-delivery:latest"
    tensorboard_image: str = "tensorflow/tensorflow:latest"
    wait_image: str = "busybox:stable"


def replica_name(job: JobObject, role: str, index: int) -> str:
    """The name of a replica's pod and of its service."""
    name = f"{job.spec.name}-{role.lower()}"
    return name if role == TENSORBOARD else f"{name}-{index}"


def host_of(job: JobObject, role: str, index: int, domain: str = "") -> str:
    """The name that other replicas reach a replica by."""
    host = f"{replica_name(job, role, index)}.{job.namespace}.svc"
    return f"{host}.{domain}" if domain else host


def labels_of(job: JobObject, uid: str, run: RunId | None = None) -> dict[str, str]:
    """Labels of everything that belongs to a job; KubeDL's names and ours."""
    labels = {UID: uid, "job-name": job.spec.name, "group-name": "kubedl.io"}
    if run is not None:
        labels |= {ROLE: run.role.lower(), INDEX: str(run.index)}
        labels |= {"replica-type": run.role.lower(), "replica-index": str(run.index)}
        labels["replica-name"] = replica_name(job, run.role, run.index)
        if run.role == "Master":
            labels["job-role"] = "master"
    return labels


def make_pod(job: JobObject, state: JobState, run: Run, settings: PodSettings) -> Object:
    """The pod of a run."""
    replica = state.replica(run.id.role, run.id.index)
    assert replica is not None
    if replica.node == ANYWHERE:
        settings = dataclasses.replace(settings, device_access="plugin")
    if run.id.role == TENSORBOARD:
        template, role = _board_template(job, settings), RoleSpec(TENSORBOARD)
    else:
        role = next(found for found in job.spec.roles if found.name == run.id.role)
        template = _template(job, role, settings)
    metadata, spec = template.get("metadata") or {}, template["spec"]
    devices = replica.group or replica.device_ids
    container = main_container(spec, job)
    _set_environment(container, _environment(run, devices, settings))
    if settings.device_access == "env":
        _name_devices(container, devices, settings)
    rule = job.framework.rule(role.name)
    if not container.get("command") and not container.get("args") and rule is not None and rule.default_command:
        container["command"] = list(rule.default_command)
    _mount_files(spec, container, job, run)
    if job.spec.code is not None and run.id.role != TENSORBOARD:
        _fetch_code(spec, container, job, role, settings)
    if job.spec.framework == "mpi" and run.id.role == "Launcher":
        _deliver_kubectl(spec, container, job, settings)
    annotations = {key: str(value) for key, value in (metadata.get("annotations") or {}).items()}
    annotations |= {DEVICES: ",".join(map(str, devices))} if devices else {}
    spec["restartPolicy"] = "Never"
    if replica.node == ANYWHERE:
        spec.setdefault("schedulerName", settings.scheduler)
    else:
        spec |= {"schedulerName": settings.scheduler, "nodeName": replica.node}
    labels = (metadata.get("labels") or {}) | labels_of(job, state.uid, run.id) | {ATTEMPT: str(run.id.attempt)}
    if _is_spot(role, replica):
        assert role.spot is not None
        labels |= role.spot.labels
        spec |= {"priorityClassName": role.spot.priority_class} if role.spot.priority_class else {}
    return {
        "apiVersion": PODS.api_version,
        "kind": PODS.kind,
        "metadata": {
            "name": replica_name(job, run.id.role, run.id.index),
            "namespace": job.namespace,
            "labels": labels,
            "annotations": annotations,
            "finalizers": [TRACKED],
            "ownerReferences": [owner_of(job.body)],
        },
        "spec": spec,
    }


def make_trial_pods(job: JobObject, settings: PodSettings) -> list[Object]:
    """A pod for each role as it could be created, to ask the API server whether it would take it."""
    state = make_job_state(dataclasses.replace(job.spec, cron=None), "trial", 0.0)
    pods = []
    for role in job.spec.roles:
        if role.replicas:
            pod = make_pod(job, state, Run(RunId("trial", role.name, 0, 0), role.command, {}), settings)
            del pod["spec"]["nodeName"], pod["metadata"]["finalizers"], pod["metadata"]["ownerReferences"]
            pods.append(pod)
    return pods


def make_service(job: JobObject, uid: str, run: RunId, port: int) -> Object | None:
    """The headless service that a replica is reached by, where its framework needs one."""
    if not _needs_service(job, run):
        return None
    name = f"{job.framework.kind.lower()}-port"
    ports = [{"name": name[:15].rstrip("-"), "port": port, "targetPort": port}]
    selector = {UID: uid, ROLE: run.role.lower(), INDEX: str(run.index)}
    return _namespaced(job, SERVICES.kind, replica_name(job, run.role, run.index), labels_of(job, uid, run)) | {
        "spec": {"clusterIP": "None", "selector": selector, "ports": ports},
    }


def make_files(job: JobObject, uid: str, run: Run) -> Object | None:
    """The config map with the files that a framework puts beside a replica."""
    files = dict(run.files)
    if not files:
        return None
    if "kubexec.sh" in files:
        files["kubexec.sh"] = '#!/bin/sh\npod=$1\nshift\nexec /opt/kube/kubectl exec "$pod" -- /bin/sh -c "$*"\n'
    return _namespaced(job, CONFIG_MAPS.kind, f"{job.spec.name}-config", labels_of(job, uid)) | {"data": files}


def make_launcher_rights(job: JobObject, uid: str) -> list[Object]:
    """What lets MPI's launcher run commands in its workers, and in no other pod."""
    if job.spec.framework != "mpi":
        return []
    worker = job.spec.role("Worker")
    names = [replica_name(job, "Worker", index) for index in range(worker.replicas if worker else 0)]
    name, labels = f"{job.spec.name}-launcher", labels_of(job, uid)
    role = _namespaced(job, "Role", name, labels, "rbac.authorization.k8s.io/v1") | {
        "rules": [
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]},
            {"apiGroups": [""], "resources": ["pods/exec"], "resourceNames": names, "verbs": ["create", "get"]},
        ]
    }
    binding = _namespaced(job, "RoleBinding", name, labels, "rbac.authorization.k8s.io/v1") | {
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": job.namespace}],
    }
    return [_namespaced(job, "ServiceAccount", name, labels), role, binding]


def main_container(spec: Object, job: JobObject) -> Object:
    """The container whose end counts: the framework's, or the only one."""
    containers: list[Object] = spec["containers"]
    return next((found for found in containers if found.get("name") == job.framework.container), containers[0])


def _namespaced(job: JobObject, kind: str, name: str, labels: dict[str, str], version: str = "v1") -> Object:
    metadata = {"name": name, "namespace": job.namespace, "labels": labels, "ownerReferences": [owner_of(job.body)]}
    return {"apiVersion": version, "kind": kind, "metadata": metadata}


def _needs_service(job: JobObject, run: RunId) -> bool:
    match job.spec.framework:
        case "mpi" | "elasticdl":
            return False
        case "pytorch":  # all meet at one address
            members = [name for name in ("Master", "Worker") if job.spec.role(name) is not None]
            return run.index == 0 and run.role in members[:1]
        case _:
            return True


def _template(job: JobObject, role: RoleSpec, settings: PodSettings) -> Object:
    """The user's template, or one made of our short form."""
    template = job.template(role.name)
    if template:
        return template
    asked: Object = {"cpu": f"{role.resources.cpus:g}"}
    limits: Object = {}
    if role.resources.memory_bytes:
        asked["memory"] = limits["memory"] = str(role.resources.memory_bytes)
    if role.resources.devices:
        asked[settings.device_resource] = limits[settings.device_resource] = str(role.resources.devices)
    container: Object = {
        "name": job.framework.container,
        "image": role.image,
        "env": [{"name": name, "value": value} for name, value in role.env.items()],
        "resources": {"requests": asked} | ({"limits": limits} if limits else {}),
    }
    container |= {"command": list(role.command)} if role.command else {}
    container |= {"workingDir": role.working_dir} if role.working_dir.startswith("/") else {}
    spec: Object = {"containers": [container]}
    spec |= {"nodeSelector": dict(role.node_selector)} if role.node_selector else {}
    return join_template({"metadata": {"labels": dict(job.spec.labels)}, "spec": spec}, job.shared_template)


def join_template(made: Object, given: Object) -> Object:
    """What we made, and what the user's template has beside it: its container of our name, or without one, is ours."""
    metadata, spec = given.get("metadata") or {}, given.get("spec") or {}
    (own,) = made["spec"]["containers"]
    others = []
    for container in spec.get("containers") or ():
        if container.get("name", own["name"]) != own["name"]:
            others.append(container)
            continue
        asked, ours = container.get("resources") or {}, own["resources"]
        resources = {part: (asked.get(part) or {}) | (ours.get(part) or {}) for part in ("requests", "limits")}
        own |= {key: value for key, value in container.items() if key not in own}
        own["resources"] = {part: amounts for part, amounts in resources.items() if amounts}
    pod = {key: value for key, value in spec.items() if key not in made["spec"]}
    labels = (metadata.get("labels") or {}) | made["metadata"]["labels"]
    return {
        "metadata": {"labels": labels, "annotations": metadata.get("annotations") or {}},
        "spec": pod | made["spec"] | {"containers": [own, *others]},
    }


def _environment(run: Run, devices: tuple[int, ...], settings: PodSettings) -> dict[str, str]:
    """The run's variables, as a container sees them: it counts its devices from 0, in the order of their numbers."""
    env = {name: value.replace("$MILLPOND_JOB_DIR", FILES_DIR) for name, value in run.env.items()}
    if settings.device_access != "env":
        return {name: value for name, value in env.items() if name not in _VISIBLE}
    inside = {str(device): str(position) for position, device in enumerate(sorted(devices))}
    for name in _VISIBLE:
        if name in env and devices:
            env[name] = ",".join(inside.get(device, device) for device in env[name].split(","))
    return env


def _set_environment(container: Object, env: dict[str, str]) -> None:
    """Ours first, so that the user's may refer to them; what ours has decided wins."""
    given: list[Object] = container.get("env") or []
    named = {item["name"] for item in given}
    ours = [{"name": name, "value": value} for name, value in sorted(env.items()) if name not in named]
    kept = [
        item if item.get("valueFrom") or item["name"] not in env else {"name": item["name"], "value": env[item["name"]]}
        for item in given
    ]
    container["env"] = [*ours, *kept]


def _name_devices(container: Object, devices: tuple[int, ...], settings: PodSettings) -> None:
    resources: Object = container.get("resources") or {}
    for part in ("requests", "limits"):
        (resources.get(part) or {}).pop(settings.device_resource, None)
    named = ",".join(map(str, devices)) or "void"
    container["env"] = [item for item in container["env"] if item["name"] != settings.device_variable]
    container["env"].insert(0, {"name": settings.device_variable, "value": named})


def _mount_files(spec: Object, container: Object, job: JobObject, run: Run) -> None:
    if run.files:
        config = {"name": f"{job.spec.name}-config", "defaultMode": 0o555}
        _add_volume(spec, {"name": "millpond-files", "configMap": config})
        _add_mount(container, "millpond-files", FILES_DIR)


def _fetch_code(spec: Object, container: Object, job: JobObject, role: RoleSpec, settings: PodSettings) -> None:
    """An init container that asks for no accelerators clones the code into a volume."""
    code = job.spec.code
    assert code is not None
    root = code.root_path if code.root_path.startswith("/") else _CODE_DIR
    steps = ["set -e", f"cd {root}", 'git clone ${5:+--depth "$5"} ${3:+--branch "$3"} -- "$1" "$2"',
             '[ -z "$4" ] || { cd "$2"; git checkout --quiet --detach "$4" -- ; }']  # fmt: skip
    depth = str(code.depth) if code.depth else ""
    config = json.loads(job.spec.annotations.get("kubedl.io/git-sync-config") or "{}")
    init = {
        "name": "git-sync-code",
        "image": config.get("image") or settings.git_image,
        "command": ["/bin/sh", "-c", "\n".join(steps), "git-sync", code.source, code.dest, code.branch,
                    code.revision, depth],
        "env": [{"name": "GIT_TERMINAL_PROMPT", "value": "0"}],
        "volumeMounts": [{"name": "git-sync", "mountPath": root}],
    }  # fmt: skip
    spec["initContainers"] = [*(spec.get("initContainers") or []), init]
    _add_volume(spec, {"name": "git-sync", "emptyDir": {}})
    _add_mount(container, "git-sync", root)
    asked = container.get("workingDir") or role.working_dir
    if not asked.startswith("/"):
        container["workingDir"] = "/".join(filter(None, (root.rstrip("/"), code.dest, asked)))


def _deliver_kubectl(spec: Object, container: Object, job: JobObject, settings: PodSettings) -> None:
    init = {
        "name": "kubectl-delivery",
        "image": settings.kubectl_image,
        "env": [{"name": "TARGET_DIR", "value": "/opt/kube"}, {"name": "NAMESPACE", "value": job.namespace}],
        "volumeMounts": [{"name": "millpond-kubectl", "mountPath": "/opt/kube"},
                         {"name": "millpond-files", "mountPath": "/etc/mpi"}],
    }  # fmt: skip
    spec["initContainers"] = [*(spec.get("initContainers") or []), init]
    _add_volume(spec, {"name": "millpond-kubectl", "emptyDir": {}})
    _add_mount(container, "millpond-kubectl", "/opt/kube")
    spec.setdefault("serviceAccountName", f"{job.spec.name}-launcher")


def _board_template(job: JobObject, settings: PodSettings) -> Object:
    board = job.spec.tensorboard
    assert board is not None
    command = ["tensorboard", "--logdir", board.log_dir, "--host", "0.0.0.0", "--port", str(_BOARD_PORT)]
    container: Object = {"name": TENSORBOARD, "image": board.image or settings.tensorboard_image, "command": command}
    spec: Object = {"containers": [container]}
    # The logs are on a volume of the job's: the board mounts what the chief mounts.
    chief = next((role.name for role in job.spec.roles if job.framework.is_chief(job.spec, role.name, 0)), "")
    leader = (job.template(chief) or job.shared_template).get("spec") if chief else None
    if leader and leader.get("containers"):
        container["volumeMounts"] = main_container(leader, job).get("volumeMounts") or []
        spec["volumes"] = leader.get("volumes") or []
    return {"spec": spec}


def _is_spot(role: RoleSpec, replica: ReplicaState) -> bool:
    return role.spot is not None and replica.index >= role.replicas - role.spot.replicas


def _add_volume(spec: Object, volume: dict[str, Any]) -> None:
    spec["volumes"] = [*(spec.get("volumes") or []), volume]


def _add_mount(container: Object, name: str, path: str) -> None:
    container["volumeMounts"] = [*(container.get("volumeMounts") or []), {"name": name, "mountPath": path}]
