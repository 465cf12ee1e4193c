from __future__ import annotations

from millpond.api.deployment import DeploymentPhase
from millpond.jobs.deployments.report import seen
from millpond.jobs.deployments.spec import load_deployments
from millpond.jobs.deployments.wish import make_wish


def test_versions_are_shown_before_the_keeper_has_said_anything() -> None:
    (spec,) = load_deployments("{name: a, run: x, replicas: 3, versions: {v1: {weight: 1}, v2: {}}}")
    status = seen(make_wish(spec, "u", 0.0, "", {}), None, 1.0)
    assert status.phase is DeploymentPhase.PROGRESSING
    assert [(one.name, one.desired, one.ready, one.weight) for one in status.versions] == [
        ("v1", 3, 0, 1), ("v2", 3, 0, 100),
    ]  # fmt: skip
