from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from millpond.api.job import CleanPolicy, Concurrency, JobSpec, RestartPolicy, SpecError, SuccessPolicy
from millpond.jobs.frameworks import FRAMEWORKS
from millpond.jobs.spec import load_jobs

TF_JOB = """
apiVersion: training.kubedl.io/v1alpha1
kind: TFJob
metadata:
  name: mnist
  namespace: research
  annotations:
    kubedl.io/git-sync-config: '{"source": "https://example.com/models.git", "branch": "main", "depth": 1}'
    kubedl.io/tensorboard-config: '{"logDir": "/logs", "ttlSecondsAfterJobFinished": 60}'
spec:
  cleanPodPolicy: None
  ttlSecondsAfterFinished: 30
  successPolicy: AllWorkers
  schedulingPolicy: {minAvailable: 3, priority: 7, queue: gold}
  cronPolicy: {schedule: "*/5 * * * *", concurrencyPolicy: Forbid, historyLimit: 2}
  tfReplicaSpecs:
    ps:
      replicas: 1
      template: &pod
        spec:
          restartPolicy: OnFailure
          containers:
            - name: tensorflow
              image: example/tf:1
              command: [python]
              args: [train.py, --steps=5]
              env: [{name: A, value: "1"}]
              resources: {limits: {cpu: 500m, memory: 1Gi, nvidia.com/gpu: 1}}
              volumeMounts: [{name: data, mountPath: /data}]
    Worker:
      replicas: 2
      restartPolicy: ExitCode
      spotReplicaSpec: {spotReplicaNumber: 1, priorityClassName: spot}
      template: *pod
"""


def minimal(kind: str) -> str:
    framework = next(found for found in FRAMEWORKS.values() if found.kind == kind)
    container = {"name": framework.container, "image": "i", "command": ["true"]}
    role = {"replicas": 1, "template": {"spec": {"containers": [container]}}}
    spec = {framework.replica_specs: {framework.roles[-1].name: role}}
    document = {"apiVersion": "training.kubedl.io/v1alpha1", "kind": kind, "metadata": {"name": "j"}, "spec": spec}
    return yaml.safe_dump(document)


def error_of(text: str) -> SpecError:
    with pytest.raises(SpecError) as caught:
        load_jobs(text)
    return caught.value


def test_a_tfjob_loads_with_all_its_parts() -> None:
    (job,) = load_jobs(TF_JOB)
    ps, worker = job.roles
    assert (job.name, job.namespace, job.tenant, job.priority, job.min_available) == (
        "mnist", "research", "gold", 7, 3,
    )  # fmt: skip
    assert (job.clean_policy, job.ttl_s, job.success_policy) == (CleanPolicy.NONE, 30, SuccessPolicy.ALL_WORKERS)
    assert (ps.name, ps.restart, ps.command) == ("PS", RestartPolicy.ON_FAILURE, ("python", "train.py", "--steps=5"))
    assert worker.restart is RestartPolicy.EXIT_CODE
    assert (worker.resources.devices, worker.resources.cpus, worker.resources.memory_bytes) == (1, 0.5, 1 << 30)
    assert worker.spot is not None
    assert worker.spot.priority_class == "spot"
    assert job.code is not None
    assert (job.code.dest, job.code.branch, job.code.depth) == ("models", "main", 1)
    assert job.tensorboard is not None
    assert job.tensorboard.ttl_s == 60
    assert job.cron is not None
    assert (job.cron.concurrency, job.cron.history_limit) == (Concurrency.FORBID, 2)


def test_what_has_no_effect_is_noted() -> None:
    (job,) = load_jobs(TF_JOB)
    assert any("volumeMounts" in note for note in job.notes)


@pytest.mark.parametrize(
    ("kind", "clean", "restart", "backoff", "ttl"),
    [
        ("TFJob", CleanPolicy.RUNNING, RestartPolicy.EXIT_CODE, None, None),
        ("PyTorchJob", CleanPolicy.NONE, RestartPolicy.ON_FAILURE, None, None),
        ("XDLJob", CleanPolicy.RUNNING, RestartPolicy.NEVER, 20, None),
        ("XGBoostJob", CleanPolicy.NONE, RestartPolicy.ON_FAILURE, None, 100.0),
        ("MPIJob", CleanPolicy.RUNNING, RestartPolicy.NEVER, None, None),
        ("MarsJob", CleanPolicy.NONE, RestartPolicy.ALWAYS, None, None),
        ("ElasticDLJob", CleanPolicy.RUNNING, RestartPolicy.NEVER, None, None),
    ],
)
def test_defaults_are_kubedls(
    kind: str, clean: CleanPolicy, restart: RestartPolicy, backoff: int | None, ttl: float | None
) -> None:
    (job,) = load_jobs(minimal(kind))
    assert (job.clean_policy, job.roles[-1].restart, job.backoff_limit, job.ttl_s) == (clean, restart, backoff, ttl)


def test_a_run_policy_of_an_mpijob_counts() -> None:
    document = yaml.safe_load(minimal("MPIJob"))
    document["spec"] |= {"runPolicy": {"cleanPodPolicy": "All", "backoffLimit": 2}, "slotsPerWorker": 4}
    (job,) = load_jobs(json.dumps(document))
    assert (job.clean_policy, job.backoff_limit, job.options["slotsPerWorker"]) == (CleanPolicy.ALL, 2, 4)


def test_a_cron_object_wraps_a_job() -> None:
    workload = yaml.safe_load(minimal("PyTorchJob"))
    document = {
        "apiVersion": "apps.kubedl.io/v1alpha1",
        "kind": "Cron",
        "metadata": {"name": "nightly"},
        "spec": {"schedule": "@daily", "template": {"workload": workload}},
    }
    (job,) = load_jobs(json.dumps(document))
    assert job.name == "nightly"
    assert job.framework == "pytorch"
    assert job.cron is not None
    assert job.cron.schedule == "@daily"


@pytest.mark.parametrize(
    ("change", "path", "says"),
    [
        (("kind: TFJob", "kind: TfJobb"), "kind", "Did you mean 'TFJob'?"),
        (("/v1alpha1", "/v1"), "apiVersion", "Write training.kubedl.io/v1alpha1."),
        (("cleanPodPolicy: None", "cleanPodPolicy: Some"), "spec.cleanPodPolicy", "not one of All, Running, None"),
        (("ttlSecondsAfterFinished", "ttlSecondAfterFinished"), "spec.ttlSecondAfterFinished", "Did you mean"),
        (("tfReplicaSpecs", "pytorchReplicaSpecs"), "spec.pytorchReplicaSpecs", "no such field"),
        (("  Worker:", "  Wrker:"), "spec.tfReplicaSpecs.Wrker", "Did you mean 'Worker'?"),
        (("containers:", "container:"), "spec.tfReplicaSpecs.ps.template.spec.container", "Did you mean 'containers'"),
        (("image:", "imagee:"), "containers[0].imagee", "Did you mean 'image'?"),
        (("cpu: 500m", "cpu: 500q"), "containers[0].resources.limits.cpu", "not an amount"),
        (("minAvailable: 3", "minAvailable: 9"), "", "more than the 3 replicas"),
        (('"depth": 1', '"depht": 1'), "git-sync-config", "Did you mean 'depth'?"),
        (("spotReplicaNumber: 1", "spotReplicaNumber: 5"), "spec.tfReplicaSpecs.Worker", "5 spot replicas"),
    ],
)
def test_an_error_names_the_field(change: tuple[str, str], path: str, says: str) -> None:
    error = error_of(TF_JOB.replace(*change))
    assert path in (error.param or "")
    assert says in str(error)


_SCALARS = st.none() | st.booleans() | st.integers(-5, 1 << 40) | st.floats() | st.text(max_size=8)
_TREES = st.recursive(_SCALARS, lambda t: st.lists(t, max_size=3) | st.dictionaries(st.text(max_size=6), t, max_size=3))


def _spots(tree: object, way: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [way, *(spot for key, value in items for spot in _spots(value, (*way, key)))]


@settings(max_examples=150)
@given(data=st.data(), tree=_TREES, key=st.text(max_size=5))
def test_a_spoilt_field_is_one_error_or_none(data: st.DataObject, tree: object, key: str) -> None:
    document = yaml.safe_load(TF_JOB)
    way = data.draw(st.sampled_from([spot for spot in _spots(document) if spot]))
    parent = document
    for step in way[:-1]:
        parent = parent[step]
    if data.draw(st.booleans()) and isinstance(parent, dict):
        parent[f"{way[-1]}{key}"] = parent.pop(way[-1])
    else:
        parent[way[-1]] = tree
    try:
        jobs = load_jobs(yaml.safe_dump(document, allow_unicode=True))
    except SpecError as error:
        assert error.message  # noqa: PT017
    else:
        assert all(isinstance(job, JobSpec) for job in jobs)


@settings(max_examples=150)
@given(st.text(max_size=60) | st.binary(max_size=60).map(lambda raw: raw.decode("latin-1")))
def test_any_text_loads_or_is_one_error(text: str) -> None:
    try:
        load_jobs(text)
    except SpecError as error:
        assert error.message  # noqa: PT017


def test_the_framework_files_stay_small(repo_root: Path) -> None:
    files = [file for file in (repo_root / "src/millpond/jobs/frameworks").glob("*.py") if file.name != "base.py"]
    assert len(files) == len(FRAMEWORKS) + 1
    assert all(len(file.read_text().splitlines()) <= 60 for file in files)


def test_a_notebook_is_one_pod_that_serves() -> None:
    text = """
    apiVersion: notebook.kubedl.io/v1alpha1
    kind: Notebook
    metadata: {name: lab, namespace: team}
    spec: {template: {spec: {containers: [{name: notebook, command: [jupyter, lab], resources: {limits: {cpu: 2}}}]}}}
    """
    (job,) = load_jobs(text)
    assert (job.framework, job.namespace, job.tenant) == ("notebook", "team", "team")
    (role,) = job.roles
    assert (role.name, role.replicas, role.command, role.resources.cpus) == ("Notebook", 1, ("jupyter", "lab"), 2.0)
    with pytest.raises(SpecError, match=r"spec.template.spec.container .*Did you mean 'containers'"):
        load_jobs(text.replace("containers:", "container:"))
    with pytest.raises(SpecError, match=r"apiVersion .*Write notebook.kubedl.io/v1alpha1"):
        load_jobs(text.replace("notebook.kubedl.io", "training.kubedl.io"))
