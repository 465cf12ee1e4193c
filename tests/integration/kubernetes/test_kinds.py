"""Every kind from its object to its clean-up, with the environment that its framework needs in a pod."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.integration.kubernetes.api_server import Object, make_node
from tests.integration.kubernetes.conftest import Room
from tests.integration.kubernetes.objects import kubedl_job, millpond_job, template

# kind, roles, the pods whose success ends the job
KINDS: list[tuple[str, dict[str, Any], list[str]]] = [
    ("PyTorchJob", {"Master": 1, "Worker": 1}, ["j-master-0"]),
    ("TFJob", {"PS": 1, "Worker": 2, "GraphLearn": 1}, ["j-worker-0"]),
    ("MPIJob", {"Launcher": 1, "Worker": 2}, ["j-launcher-0"]),
    ("XGBoostJob", {"Master": 1, "Worker": 1}, ["j-master-0"]),
    ("XDLJob", {"PS": 1, "Scheduler": 1, "Worker": 2}, ["j-worker-0", "j-worker-1"]),
    ("MarsJob", {"Scheduler": 1, "Worker": 1}, ["j-scheduler-0"]),
    ("ElasticDLJob", {"Master": 1}, ["j-master-0"]),
]


def env_of(pod: Object) -> dict[str, str]:
    return {item["name"]: item.get("value", "") for item in pod["spec"]["containers"][0]["env"]}


@pytest.mark.parametrize(("kind", "roles", "deciding"), KINDS, ids=[kind for kind, _, _ in KINDS])
async def test_kind_runs_whole_ends_and_leaves_nothing_that_runs(
    room: Room, kind: str, roles: dict[str, Any], deciding: list[str]
) -> None:
    plural = f"{kind.lower()}s"
    await room.server.put(make_node("n1", cpus=16))
    await room.start()
    room.run_pods()
    await room.server.put(kubedl_job(kind, "j", roles, cleanPodPolicy="Running", ttlSecondsAfterFinished=1000))
    await room.phase_is(plural, "j", "Running")
    await room.until(lambda: len(room.pods()) == sum(roles.values()))
    record = room.server.find("reservations", f"{kind.lower()}.j")
    assert {one["role"] for one in record["spec"]["placements"]} == set(roles)
    for name in deciding:
        await room.until(lambda name=name: room.pods()[name]["status"]["phase"] == "Running")
        await room.server.set_pod(name, "Succeeded", 0)
    await room.phase_is(plural, "j", "Succeeded")
    await room.until(lambda: all(pod["status"]["phase"] == "Succeeded" for pod in room.pods().values()))
    await room.until(lambda: not any(pod["metadata"].get("finalizers") for pod in room.pods().values()))


async def test_tf_config_names_services(room: Room) -> None:
    await room.server.put(make_node("n1", cpus=16))
    await room.start()
    room.run_pods()
    await room.server.put(kubedl_job("TFJob", "t", {"PS": 1, "Worker": 2, "Evaluator": 1}))
    await room.until(lambda: len(room.pods()) == 4)
    config = json.loads(env_of(room.pods()["t-worker-1"])["TF_CONFIG"])
    assert config["cluster"] == {
        "ps": ["t-ps-0.default.svc:2222"],
        "worker": ["t-worker-0.default.svc:2222", "t-worker-1.default.svc:2222"],
    }
    assert config["task"] == {"type": "worker", "index": 1}
    ports = room.server.find("services", "t-ps-0")["spec"]
    assert ports["clusterIP"] == "None"
    assert ports["ports"] == [{"name": "tfjob-port", "port": 2222, "targetPort": 2222}]


async def test_mpi_launcher_gets_hosts_agent_and_rights_for_its_workers_alone(room: Room) -> None:
    await room.server.put(make_node("n1", cpus=16))
    await room.start()
    room.run_pods()
    worker = template("mpi")
    del worker["spec"]["containers"][0]["command"]
    roles = {"Launcher": 1, "Worker": {"replicas": 2, "template": worker}}
    await room.server.put(kubedl_job("MPIJob", "m", roles, slotsPerWorker=4))
    await room.until(lambda: len(room.pods()) == 3)
    pods = room.pods()
    files = room.server.find("configmaps", "m-config")["data"]
    assert files["hostfile"] == "m-worker-0 slots=4\nm-worker-1 slots=4\n"
    assert "/opt/kube/kubectl exec" in files["kubexec.sh"]
    launcher = pods["m-launcher-0"]
    assert env_of(launcher)["OMPI_MCA_plm_rsh_agent"] == "/etc/millpond/kubexec.sh"
    assert launcher["spec"]["serviceAccountName"] == "m-launcher"
    assert [init["name"] for init in launcher["spec"]["initContainers"]] == ["kubectl-delivery"]
    rules = room.server.find("roles", "m-launcher")["rules"]
    assert rules[1] == {"apiGroups": [""], "resources": ["pods/exec"], "verbs": ["create", "get"],
                        "resourceNames": ["m-worker-0", "m-worker-1"]}  # fmt: skip
    assert pods["m-worker-0"]["spec"]["containers"][0]["command"] == ["sleep", "365d"]


async def test_short_form_runs(room: Room) -> None:
    await room.server.put(make_node("n1", cpus=16, devices=4))
    await room.start()
    room.run_pods()
    role = {"image": "train:1", "run": "python train.py", "devices": 2, "memory": "2GiB"}
    await room.server.put(millpond_job("short", framework="pytorch", roles={"master": role, "worker": role}))
    await room.phase_is("millpondjobs", "short", "Running")
    pods = room.pods()
    containers = {name: pod["spec"]["containers"][0] for name, pod in pods.items()}
    assert containers["short-master-0"]["command"] == ["/bin/sh", "-c", "python train.py"]
    held = sorted(pod["metadata"]["annotations"]["jobs.millpond.io/devices"] for pod in pods.values())
    assert held == ["0,1", "2,3"]
    assert sorted(env_of(pod)["NVIDIA_VISIBLE_DEVICES"] for pod in pods.values()) == held
    assert {env_of(pod)["CUDA_VISIBLE_DEVICES"] for pod in pods.values()} == {"0,1"}  # counted inside the container
    assert "nvidia.com/gpu" not in containers["short-master-0"]["resources"]["requests"]
    await room.server.set_pod("short-master-0", "Succeeded", 0)
    await room.phase_is("millpondjobs", "short", "Succeeded")


async def test_template_of_the_user_passes_through(room: Room) -> None:
    secret = {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}
    own = template("pytorch", env=[secret, {"name": "RANK_FILE", "value": "$(RANK)"}],
                   volumeMounts=[{"name": "data", "mountPath": "/data"}])  # fmt: skip
    own["metadata"] = {"annotations": {"team": "vision"}, "labels": {"app": "mine"}}
    own["spec"] |= {"volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "d"}}],
                    "tolerations": [{"operator": "Exists"}], "imagePullSecrets": [{"name": "pull"}]}  # fmt: skip
    del own["spec"]["containers"][0]["command"]
    await room.server.put(make_node("n1"))
    await room.start()
    await room.server.put(kubedl_job("PyTorchJob", "own", {"Master": {"template": own}}))
    pod = (await room.until(room.pods))["own-master-0"]
    container = pod["spec"]["containers"][0]
    names = [item["name"] for item in container["env"]]
    assert secret in container["env"]
    assert names.index("RANK") < names.index("RANK_FILE")
    assert "command" not in container  # the image's own
    assert pod["spec"]["volumes"][0]["persistentVolumeClaim"] == {"claimName": "d"}
    assert pod["metadata"]["annotations"]["team"] == "vision"
    assert pod["metadata"]["labels"]["app"] == "mine"
    assert (pod["spec"]["nodeName"], pod["spec"]["restartPolicy"]) == ("n1", "Never")


async def test_code_is_fetched_inside_each_pod_without_devices(room: Room) -> None:
    job = kubedl_job("PyTorchJob", "code", {"Master": {"template": template("pytorch", devices=1)}})
    sync = {"source": "https://example.org/repo.git", "branch": "main", "depth": 1}
    job["metadata"]["annotations"] = {"kubedl.io/git-sync-config": json.dumps(sync)}
    await room.server.put(make_node("n1", devices=1))
    await room.start()
    await room.server.put(job)
    pod = (await room.until(room.pods))["code-master-0"]
    init = pod["spec"]["initContainers"][0]
    assert init["command"][-5:] == ["https://example.org/repo.git", "repo", "main", "", "1"]
    assert "resources" not in init
    assert pod["spec"]["containers"][0]["workingDir"] == "/code/repo"


async def test_cron_makes_jobs_and_says_so(room: Room) -> None:
    run = kubedl_job("PyTorchJob", "unused", {"Master": 1})
    cron = {"apiVersion": "apps.kubedl.io/v1alpha1", "kind": "Cron",
            "metadata": {"name": "nightly", "namespace": "default"},
            "spec": {"schedule": "* * * * *", "concurrencyPolicy": "Forbid",
                     "template": {"apiVersion": run["apiVersion"], "kind": "PyTorchJob",
                                  "workload": {"spec": run["spec"]}}}}  # fmt: skip
    await room.server.put(make_node("n1"))
    await room.server.put(cron)
    stored = room.server.find("crons", "nightly")
    stored["metadata"]["creationTimestamp"] = "2026-01-01T00:00:30Z"  # many minutes ago: one run is due at once
    await room.start()
    room.run_pods()
    (made,) = await room.until(lambda: room.server.all("pytorchjobs"))
    name = made["metadata"]["name"]
    assert made["metadata"]["labels"]["kubedl.io/cron-name"] == "nightly"
    assert made["metadata"]["ownerReferences"][0]["name"] == "nightly"
    await room.phase_is("pytorchjobs", name, "Running")
    await room.server.set_pod(f"{name}-master-0", "Succeeded", 0)
    await room.phase_is("pytorchjobs", name, "Succeeded")
    await room.until(lambda: room.server.find("crons", "nightly").get("status", {}).get("history", [{}])[0].get(
        "status") == "Succeeded")  # fmt: skip
    status = room.server.find("crons", "nightly")["status"]
    assert status["active"] == []
    assert status["history"][0]["object"]["name"] == name


async def test_success_leaves_a_model_version(room: Room) -> None:
    model = {"modelName": "resnet", "storage": {"localStorage": {"path": "/models"}}, "imageRepo": "repo/resnet"}
    await room.server.put(make_node("n1"))
    await room.start()
    room.run_pods()
    await room.server.put(kubedl_job("PyTorchJob", "mv", {"Master": 1}, modelVersion=model))
    await room.phase_is("pytorchjobs", "mv", "Running")
    assert env_of(room.pods()["mv-master-0"])["KUBEDL_MODEL_PATH"] == "/models"
    await room.server.set_pod("mv-master-0", "Succeeded", 0)
    (version,) = await room.until(lambda: room.server.all("modelversions"))
    assert version["spec"]["modelName"] == "resnet"
    assert version["spec"]["imageRepo"] == "repo/resnet"
    await room.until(lambda: room.server.find("pytorchjobs", "mv")["status"].get("modelVersionName")
                     == version["metadata"]["name"])  # fmt: skip


async def test_a_notebook_runs_until_it_ends(room: Room) -> None:
    await room.server.put(make_node("n1", cpus=4))
    await room.start()
    room.run_pods()
    container = {"name": "notebook", "image": "jupyter:1", "volumeMounts": [{"name": "w", "mountPath": "/home/w"}]}
    body = {
        "apiVersion": "notebook.kubedl.io/v1alpha1", "kind": "Notebook",
        "metadata": {"name": "lab", "namespace": "default"},
        "spec": {"template": {"spec": {"containers": [container], "volumes": [{"name": "w", "emptyDir": {}}]}}},
    }  # fmt: skip
    await room.server.put(body)
    await room.phase_is("notebooks", "lab", "Running")
    pod = room.pods()["lab-notebook-0"]
    assert env_of(pod)["JUPYTER_ENABLE_LAB"] == "yes"
    assert pod["spec"]["volumes"] == [{"name": "w", "emptyDir": {}}]
    (service,) = room.server.all("services")
    assert service["spec"]["ports"][0]["port"] == 8888
    found = room.server.find("notebooks", "lab")
    assert found is not None
    assert (found["status"]["condition"], found["status"]["url"]) == (
        "Running", "http://lab-notebook-0.default.svc:8888",
    )  # fmt: skip
    await room.server.set_pod("lab-notebook-0", "Succeeded", 0)
    await room.until(lambda: (room.server.find("notebooks", "lab") or {})["status"]["condition"] == "Terminated")
    await room.server.put({**body, "metadata": {"name": "bad", "namespace": "default"}, "spec": {"template": {}}})
    await room.phase_is("notebooks", "bad", "Failed")
    refused = room.server.find("notebooks", "bad")
    assert refused is not None
    assert refused["status"]["field"] == "spec.template.spec"
