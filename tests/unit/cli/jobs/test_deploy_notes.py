from __future__ import annotations

from millpond.cli.deploy.command import _notes
from millpond.jobs.deployments.spec import load_deployments


def test_what_only_containers_have_is_noted_on_this_machine() -> None:
    text = "{name: a, run: x, ports: {grpc: 9}, versions: {v1: {template: {metadata: {labels: {b: c}}}}, v2: {}}}"
    (spec,) = load_deployments(text)
    assert _notes(spec) == [
        "versions.v1.template has no effect on a local cluster.",
        "versions.v1.ports has no effect on a local cluster.",
        "versions.v2.ports has no effect on a local cluster.",
    ]
