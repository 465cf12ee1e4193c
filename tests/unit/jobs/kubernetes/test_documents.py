"""Objects as an API server hands them out, and those that nobody could mean."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millpond.api.job import SpecError
from millpond.jobs.clusters.kubernetes.documents import read_job
from millpond.jobs.clusters.kubernetes.kinds import JOB_KINDS, PODS, TOPOLOGIES
from millpond.jobs.clusters.kubernetes.pods import PodSettings, make_trial_pods

CONTAINER = {"name": "pytorch", "image": "i", "args": ["x"], "env": [{"name": "A", "value": "b"}]}
JOB = {
    "apiVersion": "training.kubedl.io/v1alpha1",
    "kind": "PyTorchJob",
    "metadata": {"name": "j", "namespace": "ns", "uid": "u", "resourceVersion": "7", "generation": 2,
                 "managedFields": [{"manager": "kubectl"}], "creationTimestamp": "2026-01-01T00:00:00Z",
                 "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"}},
    "spec": {"pytorchReplicaSpecs": {"Master": {"template": {"spec": {"containers": [CONTAINER]}}}}},
    "status": {"phase": "Running"},
}  # fmt: skip
OURS = {
    "apiVersion": "jobs.millpond.io/v1alpha1",
    "kind": "MillpondJob",
    "metadata": {"name": "j", "namespace": "ns", "uid": "u"},
    "spec": {"roles": {"worker": {"image": "i", "run": "r"}}},
}
CRON = {
    "apiVersion": "apps.kubedl.io/v1alpha1",
    "kind": "Cron",
    "metadata": {"name": "c", "namespace": "ns", "uid": "u"},
    "spec": {"schedule": "0 3 * * *", "template": {"apiVersion": JOB["apiVersion"], "kind": "PyTorchJob",
                                                   "workload": {"spec": JOB["spec"]}}},
}  # fmt: skip

leaves = st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=3)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


def _ways(value: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [way, *(found for key, item in inner for found in _ways(item, (*way, key)))]


def test_what_the_server_adds_is_no_field_of_the_users() -> None:
    job = read_job(JOB)
    assert (job.spec.name, job.spec.namespace, job.spec.num_replicas) == ("j", "ns", 1)


def test_variables_from_secrets_and_the_images_own_command_are_taken() -> None:
    body = copy.deepcopy(JOB)
    container = body["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]["containers"][0]
    del container["args"]
    container["env"].append({"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}})
    (pod,) = make_trial_pods(read_job(body), PodSettings())
    made = pod["spec"]["containers"][0]
    assert "command" not in made
    assert "args" not in made
    assert container["env"][1] in made["env"]


def test_notes_for_local_processes_are_left_out() -> None:
    body = copy.deepcopy(JOB)
    body["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]["volumes"] = []
    assert read_job(body).spec.notes == ()


def test_gang_scheduler_cannot_keep_an_order_by_ends() -> None:
    body = copy.deepcopy(OURS)
    role = {"image": "i", "run": "r"}
    body["spec"] = {"framework": "tf", "roles": {"ps": role, "worker": role | {"after": {"ps": "Succeeded"}}}}
    assert read_job(body).spec.num_replicas == 2
    with pytest.raises(SpecError, match="volcano places all at once"):
        read_job(body, "volcano")


@pytest.mark.parametrize("field", ["name", "namespace", "labels", "annotations"])
def test_metadata_inside_our_spec_is_refused(field: str) -> None:
    body = copy.deepcopy(OURS)
    body["spec"][field] = "x"
    with pytest.raises(SpecError, match=rf"spec\.{field}: belongs into metadata"):
        read_job(body)


@pytest.mark.parametrize("body", [JOB, OURS, CRON], ids=["kubedl", "ours", "cron"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_field_with_any_value_is_read_or_refused(body: dict[str, Any], data: st.DataObject) -> None:
    """Whatever stands in the spec: a job, or one error with a path; never another exception."""
    broken = copy.deepcopy(body)
    *way, last = data.draw(st.sampled_from([way for way in _ways(body["spec"]) if way]))
    at = broken["spec"]
    for step in way:
        at = at[step]
    at[last] = data.draw(values)
    try:
        found = read_job(broken)
    except SpecError as error:
        found = error
    assert found.param if isinstance(found, SpecError) else make_trial_pods(found, PodSettings())


def test_paths_are_those_of_the_api_server() -> None:
    assert PODS.path("ns", "p", "status") == "/api/v1/namespaces/ns/pods/p/status"
    assert TOPOLOGIES.path("", "n1") == "/apis/jobs.millpond.io/v1alpha1/topologies/n1"
    assert {kind.plural for kind in JOB_KINDS} == {
        "pytorchjobs", "tfjobs", "mpijobs", "xgboostjobs", "xdljobs", "marsjobs", "elasticdljobs", "millpondjobs",
        "notebooks", "crons",
    }  # fmt: skip
