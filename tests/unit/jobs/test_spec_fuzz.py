"""Fuzzed YAML: whatever is done to a good file, it loads or is one error that names a place; nothing else escapes."""

from __future__ import annotations

import copy
import random
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from millpond.api.job import SpecError
from millpond.jobs.client import JobsClient
from millpond.jobs.spec import load_jobs

SHORT = """
{name: mnist, framework: pytorch, tenant: research, priority: 5, run: python train.py, env: {EPOCHS: 3}, ttl: 1h30m,
 backoff_limit: 2, roles: {master: {devices: 1, cpus: 500m}, worker: {replicas: 2, devices: 1, memory: 4GiB, spot: 1}}}
"""
KUBEDL = """
{apiVersion: training.kubedl.io/v1alpha1, kind: TFJob, metadata: {name: mnist, namespace: research}, spec: {
  cleanPodPolicy: None, ttlSecondsAfterFinished: 30, schedulingPolicy: {minAvailable: 3, priority: 7, queue: gold},
  tfReplicaSpecs: {
    PS: {replicas: 1, template: {spec: {containers: [{name: tensorflow, image: i, command: [python, ps.py]}]}}},
    Worker: {replicas: 2, restartPolicy: ExitCode, template: {spec: {containers: [
      {name: tensorflow, command: [python], args: [w.py], resources: {limits: {nvidia.com/gpu: 1, cpu: 2}}}]}}}}}}
"""
STRANGE: list[Any] = [
    None, True, -1, 0, 1 << 70, 1.5, float("nan"), float("inf"), "", "x", "../..", "a b", "-1", "9" * 400, "\u202e",
    "\x7f", [], {}, [[]], {"": ""}, [None], {"a": {"b": []}}, "1h30", "4GiBB", "{", "é" * 300,
]  # fmt: skip
_WHOLE = re.compile("YAML|document|job")  # an error about all of it has no path


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a document."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, child in children for place in places(child, (*path, key)))]


def spoiled(document: Any, chance: random.Random) -> Any:
    """The document with one to three things wrong in it, or right in another way."""
    made = copy.deepcopy(document)
    for _ in range(chance.randint(1, 3)):
        path = chance.choice([place for place in places(made) if place] or [()])
        if not path:
            return chance.choice(STRANGE)
        parent = made
        for key in path[:-1]:
            parent = parent[key]
        match chance.randrange(4):
            case 0:
                parent[path[-1]] = copy.deepcopy(chance.choice(STRANGE))
            case 1:
                del parent[path[-1]]
            case 2 if isinstance(parent, dict):
                parent[f"{path[-1]}x"] = parent.pop(path[-1])
            case _:
                other = made
                for key in chance.choice(places(made)):
                    other = other[key]
                parent[path[-1]] = copy.deepcopy(other)
    return made


def fuzz(text: str, cases: int, seed: int) -> tuple[int, int]:
    """How many loaded, and how many were refused."""
    chance = random.Random(seed)
    document = yaml.safe_load(text)
    loaded, refusals = 0, []
    for _ in range(cases):
        broken = yaml.safe_dump(spoiled(document, chance), allow_unicode=True)
        try:
            load_jobs(broken)
            loaded += 1
        except SpecError as error:
            refusals.append((error, broken))
    nowhere = [(error, text) for error, text in refusals if not (error.param or _WHOLE.search(error.message))]
    assert not nowhere
    return loaded, len(refusals)


@pytest.mark.parametrize("text", [SHORT, KUBEDL], ids=["short", "kubedl"])
def test_a_spoiled_file_loads_or_is_one_error(text: str) -> None:
    loaded, refused = fuzz(text, 300, seed=1)
    assert loaded > 10
    assert refused > 100


@pytest.mark.stress
@pytest.mark.parametrize("text", [SHORT, KUBEDL], ids=["short", "kubedl"])
def test_ten_thousand_spoiled_files_load_or_are_one_error(text: str) -> None:
    fuzz(text, 10_000, seed=2)


def test_a_refused_file_creates_nothing(tmp_path: Path) -> None:
    client = JobsClient(tmp_path / "jobs", {}, str(tmp_path), starts_controller=False)
    chance, document = random.Random(3), yaml.safe_load(SHORT)
    for _ in range(40):
        bad = spoiled(document, chance)
        text = f"{{name: first, run: x}}\n---\n{yaml.safe_dump(bad)}\n---\n{{name: last, run: x, oops: 1}}"
        with pytest.raises(SpecError):
            client.submit(text)
    assert client.jobs(with_deleted=True) == []
    client.close()
