from __future__ import annotations

import json

import pytest

from millpond.api.job import JobSpec, ReplicaPhase
from millpond.jobs.frameworks import FRAMEWORKS, Address, Replica, find_framework
from millpond.jobs.spec import load_jobs


def load(framework: str, roles: str, more: str = "") -> JobSpec:
    (job,) = load_jobs(f"{{name: j, framework: {framework}, run: x, roles: {roles}{more}}}")
    return job


def replica(job: JobSpec, role: str, index: int = 0, rank: int | None = None) -> Replica:
    """As on a cluster with services: every replica has a name of its own and the framework's port."""
    port = FRAMEWORKS[job.framework].port
    addresses = {
        (spec.name, i): Address(f"j-{spec.name.lower()}-{i}.default.svc", port)
        for spec in job.roles
        for i in range(spec.replicas)
    }
    spec = job.role(role)
    assert spec is not None
    return Replica(job, spec, index, "uid-1", addresses, rank)


def environment(job: JobSpec, role: str, index: int = 0, rank: int | None = None) -> dict[str, str]:
    return FRAMEWORKS[job.framework].environment(replica(job, role, index, rank))


def test_tf_config_of_a_worker() -> None:
    job = load("tf", "{ps: {}, worker: {replicas: 2}, chief: {}, evaluator: {}}")
    assert json.loads(environment(job, "Worker", 1)["TF_CONFIG"]) == {
        "cluster": {
            "ps": ["j-ps-0.default.svc:2222"],
            "worker": ["j-worker-0.default.svc:2222", "j-worker-1.default.svc:2222"],
            "chief": ["j-chief-0.default.svc:2222"],
        },
        "task": {"type": "worker", "index": 1},
        "environment": "cloud",
    }


def test_an_evaluator_has_a_task_and_no_place_in_the_cluster() -> None:
    config = json.loads(environment(load("tf", "{worker: {}, evaluator: {}}"), "Evaluator")["TF_CONFIG"])
    assert config["task"] == {"type": "evaluator", "index": 0}
    assert "evaluator" not in config["cluster"]


def test_a_tfjob_of_one_replica_has_no_tf_config() -> None:
    assert environment(load("tf", "{worker: {}}"), "Worker") == {}


def test_graphlearn_servers_start_before_workers_and_are_found_their_own_way() -> None:
    job = load("tf", "{ps: {}, worker: {replicas: 3}, graphlearn: {replicas: 2}}")
    worker = job.role("Worker")
    assert worker is not None
    assert {edge.role for edge in worker.after or ()} == {"PS", "GraphLearn"}
    found = environment(job, "Worker", 2)
    servers = "j-graphlearn-0.default.svc:2222,j-graphlearn-1.default.svc:2222"
    assert json.loads(found["GRAPH_LEARN_CLUSTER"]) == {"server": servers, "client_count": 3}
    assert "graphlearn" not in json.loads(found["TF_CONFIG"])["cluster"]


def test_pytorch_ranks_follow_the_master() -> None:
    job = load("pytorch", "{master: {}, worker: {replicas: 2}}")
    master, worker = environment(job, "Master"), environment(job, "Worker", 1)
    assert (master["MASTER_ADDR"], master["RANK"]) == ("localhost", "0")
    assert worker == {
        "MASTER_ADDR": "j-master-0.default.svc",
        "MASTER_PORT": "23456",
        "WORLD_SIZE": "3",
        "RANK": "2",
        "PYTHONUNBUFFERED": "1",
    }


def test_pytorch_counts_no_aimaster() -> None:
    job = load("pytorch", "{aimaster: {}, master: {}, worker: {}}")
    assert environment(job, "Worker")["WORLD_SIZE"] == "2"
    assert "RANK" not in environment(job, "AIMaster")


def test_pytorch_workers_alone_meet_at_worker_0() -> None:
    job = load("pytorch", "{worker: {replicas: 2}}")
    assert environment(job, "Worker", 0)["RANK"] == "0"
    assert environment(job, "Worker", 1)["MASTER_ADDR"] == "j-worker-0.default.svc"
    assert environment(job, "Worker", 1)["RANK"] == "1"


def test_a_rank_chosen_by_the_scheduler_wins() -> None:
    assert environment(load("pytorch", "{worker: {replicas: 4}}"), "Worker", 1, rank=3)["RANK"] == "3"


def test_pytorch_with_processes_per_node_speaks_torchrun() -> None:
    found = environment(load("pytorch", "{master: {}, worker: {}}", ", options: {nproc_per_node: 4}"), "Worker")
    assert (found["PET_NPROC_PER_NODE"], found["PET_NNODES"], found["PET_NODE_RANK"]) == ("4", "2", "1")


@pytest.mark.parametrize(
    ("distribution", "names", "line"),
    [
        ("OpenMPI", {"OMPI_MCA_plm_rsh_agent", "OMPI_MCA_orte_default_hostfile"}, "j-worker-0 slots=2"),
        ("IntelMPI", {"I_MPI_HYDRA_BOOTSTRAP_EXEC", "I_MPI_HYDRA_HOST_FILE"}, "j-worker-0:2"),
        ("MPICH", {"HYDRA_LAUNCHER_EXEC", "HYDRA_HOST_FILE"}, "j-worker-0:2"),
    ],
)
def test_mpi_launcher_finds_agent_and_hosts(distribution: str, names: set[str], line: str) -> None:
    options = f", options: {{slots_per_worker: 2, mpi_distribution: {distribution}}}"
    job = load("mpi", "{launcher: {}, worker: {replicas: 2}}", options)
    assert set(environment(job, "Launcher")) == names
    assert environment(job, "Worker") == {}
    files = FRAMEWORKS["mpi"].files(replica(job, "Launcher"))
    assert files["hostfile"].splitlines()[0] == line
    assert files["kubexec.sh"].startswith("#!/bin/sh\n")


def test_mpi_workers_need_no_command() -> None:
    (job,) = load_jobs("{name: j, framework: mpi, roles: {launcher: {run: x}, worker: {}}}")
    assert [role.command for role in job.roles] == [("sleep", "365d"), ("/bin/sh", "-c", "x")]


def test_xgboost_workers_are_ranked_after_the_master() -> None:
    job = load("xgboost", "{master: {}, worker: {replicas: 2}}")
    ranks = [environment(job, role, i)["RANK"] for role, i in (("Master", 0), ("Worker", 0), ("Worker", 1))]
    assert ranks == ["0", "1", "2"]
    assert environment(job, "Worker")["MASTER_PORT"] == "9999"


def test_xdl_tasks_and_zookeeper() -> None:
    (job,) = load_jobs("{name: j, framework: xdl, run: x, env: {ZK_ADDR: 'zk://h:1/p'}, roles: {ps: {}, worker: {}}}")
    found = environment(job, "PS")
    assert (found["TASK_NAME"], found["TASK_INDEX"], found["ZK_ADDR"]) == ("ps", "0", "zk://h:1/p/uid-1")
    assert json.loads(found["XDL_CONFIG"])["cluster"]["worker"] == ["j-worker-0.default.svc:2222"]


def test_mars_describes_a_cluster_without_workers() -> None:
    job = load("mars", "{scheduler: {}, worker: {cpus: 2, memory: 1GiB}, webservice: {}}")
    detail = json.loads(environment(job, "Worker")["MARS_CLUSTER_DETAIL"])
    assert set(detail["cluster"]) == {"scheduler", "webservice"}
    assert detail["task"] == {"type": "worker", "index": 0, "resources": {"cpu_procs": 2, "phy_mem": 1 << 30}}
    assert environment(job, "Worker")["MARS_MEMORY_TOTAL"] == str(1 << 30)


def test_plain_workers_know_their_index() -> None:
    found = environment(load("plain", "{worker: {replicas: 3}}"), "Worker", 2)
    assert (found["MILLPOND_JOB_INDEX"], found["MILLPOND_JOB_REPLICAS"]) == ("2", "3")


@pytest.mark.parametrize(
    ("framework", "roles", "more", "done", "expected"),
    [
        ("tf", "{chief: {}, worker: {replicas: 2}}", "", {"Chief": 1}, True),
        ("tf", "{chief: {}, worker: {replicas: 2}}", ", success: AllWorkers", {"Chief": 1, "Worker": 1}, False),
        ("tf", "{chief: {}, worker: {replicas: 2}}", ", success: AllWorkers", {"Chief": 1, "Worker": 2}, True),
        ("tf", "{ps: {}, worker: {replicas: 2}}", "", {"Worker": 1}, True),
        ("tf", "{ps: {}, worker: {replicas: 2}}", ", success: AllWorkers", {"Worker": 1}, False),
        ("pytorch", "{master: {}, worker: {replicas: 2}}", "", {"Master": 1}, True),
        ("pytorch", "{master: {}, worker: {replicas: 2}}", "", {"Worker": 2}, False),
        ("pytorch", "{worker: {replicas: 2}}", "", {"Worker": 2}, True),
        ("mpi", "{launcher: {}, worker: {replicas: 2}}", "", {"Launcher": 1}, True),
        ("xdl", "{ps: {}, worker: {replicas: 10}}", "", {"Worker": 8}, False),
        ("xdl", "{ps: {}, worker: {replicas: 10}}", "", {"Worker": 9}, True),
        ("xdl", "{ps: {}, worker: {replicas: 10}}", ", options: {min_finish_work_num: 3}", {"Worker": 3}, True),
        ("xdl", "{worker: {replicas: 3}, extendrole: {replicas: 1}}", "", {"Worker": 3}, False),
        ("plain", "{worker: {replicas: 2}}", "", {"Worker": 1}, False),
        ("plain", "{worker: {replicas: 2}}", "", {"Worker": 2}, True),
    ],
)
def test_when_a_job_has_succeeded(framework: str, roles: str, more: str, done: dict[str, int], expected: bool) -> None:
    def phase_of(role: str, index: int) -> ReplicaPhase:
        return ReplicaPhase.SUCCEEDED if index < done.get(role, 0) else ReplicaPhase.RUNNING

    assert FRAMEWORKS[framework].succeeded(load(framework, roles, more), phase_of) is expected


@pytest.mark.parametrize("name", ["pytorch", "PyTorchJob", "pytorchjob", "py"])
def test_a_framework_has_several_names(name: str) -> None:
    found = find_framework(name)
    assert found is not None
    assert found.name == "pytorch"
