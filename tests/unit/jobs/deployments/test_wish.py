from __future__ import annotations

import dataclasses

import pytest

from millpond.api.deployment import DeploymentNotFoundError, DeploymentSpec
from millpond.api.job import SpecError
from millpond.jobs.deployments.spec import load_deployments
from millpond.jobs.deployments.wish import (
    KEPT_REVISIONS,
    Wish,
    add_versions,
    change,
    drop_version,
    make_wish,
    roll_back,
    split,
)


def spec(run: str, more: str = "") -> DeploymentSpec:
    return load_deployments(f"{{name: web, run: {run}, port: 80{more}}}")[0]


def wish(*runs: str) -> Wish:
    made = make_wish(spec(runs[0]), "uid", 0.0, "/", {})
    for number, run in enumerate(runs[1:], 1):
        made = change(made, spec(run), float(number), "updated")
    return made


def test_only_another_template_makes_a_revision() -> None:
    made = wish("a")
    scaled = change(made, spec("a", ", replicas: 5"), 1.0, "scaled")
    assert (scaled.generation, scaled.revision("v1").number) == (2, 1)
    assert change(made, spec("b"), 1.0, "updated").revision("v1").number == 2


def test_going_back_runs_an_old_template_under_its_own_number() -> None:
    made = roll_back(wish("a", "b", "c"), "v1", None, 9.0)
    assert made.revision("v1").number == 2
    assert made.revision("v1").template == wish("b").revision("v1").template
    made = roll_back(made, "v1", 1, 10.0)
    assert made.spec.versions[0].template == wish("a").spec.versions[0].template
    assert [revision.number for revision in made.revisions["v1"]] == [3, 2, 1]
    assert made.cause == "back to revision 1"
    assert change(made, spec("d"), 11.0, "updated").revision("v1").number == 4


def test_a_revision_that_is_not_there_is_an_error() -> None:
    with pytest.raises(DeploymentNotFoundError, match="There are: none"):
        roll_back(wish("a"), "v1", None, 1.0)
    with pytest.raises(DeploymentNotFoundError, match="There are: 1"):
        roll_back(wish("a", "b"), "v1", 2, 1.0)
    with pytest.raises(DeploymentNotFoundError, match="has no version 'v2'"):
        roll_back(wish("a"), "v2", None, 1.0)


def test_old_revisions_are_forgotten() -> None:
    made = wish(*(f"run{i}" for i in range(KEPT_REVISIONS + 5)))
    assert [revision.number for revision in made.revisions["v1"]] == list(range(6, KEPT_REVISIONS + 6))


def test_the_address_stays() -> None:
    made = wish("a")
    moved = dataclasses.replace(made.spec, gateway=dataclasses.replace(made.spec.gateway, port=81))
    with pytest.raises(SpecError, match="cannot change"):
        change(made, moved, 1.0, "moved")


def test_versions_come_and_go() -> None:
    other = load_deployments("{name: web, port: 80, versions: {v2: {run: b, weight: 5}}}")[0]
    made = add_versions(wish("a"), other, 1.0)
    assert [version.name for version in made.spec.versions] == ["v1", "v2"]
    shared = split(made, {"v1": 0}, 2.0)
    assert [version.weight for version in shared.spec.versions] == [0, 5]
    with pytest.raises(SpecError, match="No version would get requests"):
        split(shared, {"v2": 0}, 3.0)
    left = drop_version(shared, "v2", 3.0)
    assert [(version.name, version.weight) for version in left.spec.versions] == [("v1", 100)]
    with pytest.raises(SpecError, match="last version"):
        drop_version(left, "v1", 4.0)
