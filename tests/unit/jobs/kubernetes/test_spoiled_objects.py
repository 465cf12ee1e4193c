"""Spoiled objects: whatever the API server hands over, an operator makes pods of it or says what is wrong."""

from __future__ import annotations

import random
from typing import Any

import pytest
import yaml

from millpond.api.job import SpecError
from millpond.jobs.clusters.kubernetes.documents import read_job
from millpond.jobs.clusters.kubernetes.kinds import find_job_kind
from millpond.jobs.clusters.kubernetes.pods import PodSettings, make_trial_pods
from millpond.jobs.deployments.kubernetes.render import render
from millpond.jobs.deployments.spec import load_deployments
from tests.unit.jobs.test_spec_fuzz import spoiled

OURS = """
apiVersion: jobs.millpond.io/v1alpha1
kind: MillpondJob
metadata: {name: m, namespace: d, labels: {a: b}}
spec:
  framework: pytorch
  tensorboard: {log_dir: /x}
  roles: {master: {image: i, run: r, devices: 1}, worker: {image: i, run: r, replicas: 2, env: {A: 1}}}
  template:
    metadata: {labels: {a: b}}
    spec:
      volumes: [{name: a, emptyDir: {}}]
      initContainers: [{name: x}]
      containers:
      - {env: [{name: x, value: y}], resources: {limits: {a: 1}}, volumeMounts: [{name: a, mountPath: /x}]}
      - {name: side, ports: [{containerPort: 3}]}
"""
KUBEDL = """
apiVersion: training.kubedl.io/v1alpha1
kind: MPIJob
metadata: {name: m, namespace: d, annotations: {kubedl.io/git-sync-config: '{"source": "https://x/y.git"}'}}
spec:
  mpiReplicaSpecs:
    Launcher:
      template:
        metadata: {labels: {a: b}, annotations: {c: d}}
        spec:
          volumes: [{name: a}]
          initContainers: [{name: x}]
          containers:
          - {name: mpi, image: i, env: [{name: a, valueFrom: {x: y}}], volumeMounts: [{name: a, mountPath: /x}]}
          - {name: side}
    Worker: {replicas: 2, template: {spec: {containers: [{name: mpi, image: i, resources: {limits: {cpu: 1}}}]}}}
"""
DEPLOYMENT = """
name: chat
image: i
ready: {path: /r, interval: 1s}
ports: {grpc: 8001}
template:
  metadata: {labels: {a: b}}
  spec: {volumes: [{name: a}], containers: [{env: [{name: x, value: y}], resources: {limits: {a: 1}}}]}
versions: {v1: {weight: 90, replicas: 3}, v2: {weight: 10, autoscale: {min: 1, max: 4, queue: 4}}}
"""


def of_server(body: Any) -> bool:
    """Whether a server would keep it: names and texts of metadata, and that there is a spec, are checked there."""
    if not isinstance(body, dict) or find_job_kind(body) is None or not isinstance(body.get("spec"), dict):
        return False
    metadata = body.get("metadata")
    if not isinstance(metadata, dict) or (metadata.get("name"), metadata.get("namespace")) != ("m", "d"):
        return False
    texts = [metadata.get(name, {}) for name in ("labels", "annotations")]
    return all(isinstance(one, dict) and all(isinstance(text, str) for text in one.values()) for one in texts)


def fuzz_objects(text: str, cases: int, seed: int) -> tuple[int, int]:
    chance, document, made, refused = random.Random(seed), yaml.safe_load(text), 0, 0
    for _ in range(cases):
        body = spoiled(document, chance)
        if not of_server(body):
            continue
        body["metadata"]["uid"] = "u"
        try:
            make_trial_pods(read_job(body), PodSettings())
            made += 1
        except SpecError:
            refused += 1
    return made, refused


def fuzz_deployments(cases: int, seed: int) -> tuple[int, int]:
    chance, document, made, refused = random.Random(seed), yaml.safe_load(DEPLOYMENT), 0, 0
    for _ in range(cases):
        try:
            for spec in load_deployments(yaml.safe_dump(spoiled(document, chance), allow_unicode=True)):
                render(spec)
            made += 1
        except SpecError:
            refused += 1
    return made, refused


@pytest.mark.parametrize("text", [OURS, KUBEDL], ids=["ours", "kubedl"])
def test_a_spoiled_object_is_a_job_or_one_error(text: str) -> None:
    made, refused = fuzz_objects(text, 200, seed=1)
    assert made > 10
    assert refused > 20


def test_a_spoiled_deployment_is_objects_or_one_error() -> None:
    made, refused = fuzz_deployments(200, seed=1)
    assert made > 10
    assert refused > 20


@pytest.mark.stress
def test_ten_thousand_spoiled_objects_are_jobs_or_one_error() -> None:
    fuzz_objects(OURS, 5_000, seed=2)
    fuzz_objects(KUBEDL, 5_000, seed=2)
    fuzz_deployments(5_000, seed=2)
