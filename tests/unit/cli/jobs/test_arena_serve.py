from __future__ import annotations

import pytest

from millpond.cli.arena.serve import triton
from millpond.cli.arena.serve_flags import read_probe, triton_run, version_fields
from millpond.cli.main import cli


def flags(**given: object) -> dict[str, object]:
    # As its parents have it: a command keeps the option for help that its first context wants.
    names = ["-h", "--help"]
    context = triton.make_context("triton", ["--name", "x", "--model-repository", "/m"], help_option_names=names)
    return dict(context.params) | given


def test_a_repository_is_served_by_our_own_server() -> None:
    line = triton_run(flags(load_model=("a b",), model_repository="/models"))[-1]
    assert "--model-repository=/models --model-control-mode=explicit '--load-model=a b'" in line
    assert '--http-port "$PORT" --allow-grpc false' in line


def test_flags_become_fields() -> None:
    fields = version_fields(["x"], flags(gpus=2, cpu="500m", memory="4Gi", replicas=3, env=("A=1",), max_surge="25%"))
    assert fields == {
        "run": ["x"], "devices": 2, "cpus": "500m", "memory": "4Gi", "replicas": 3, "env": {"A": "1"},
        "rollout": {"max_surge": "25%"},
    }  # fmt: skip


def test_an_update_changes_what_is_said_alone() -> None:
    old = {"run": ["x"], "cpus": 2, "env": {"A": "1", "B": "1"}, "rollout": {"drain": 5}}
    assert version_fields(None, flags(env=("A=2",), max_unavailable="1"), old) == {
        "run": ["x"], "cpus": 2, "env": {"A": "2", "B": "1"}, "rollout": {"drain": 5, "max_unavailable": 1},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("action", "options", "probe"),
    [("httpGet", ("path: /ok",), "/ok"), ("tcpSocket", (), {}), (None, (), None), (None, ("path: /a",), "/a")],
)
def test_arenas_probes_become_ours(action: str | None, options: tuple[str, ...], probe: object) -> None:
    assert read_probe(flags(readiness_probe_action=action, readiness_probe_action_option=options)) == probe


def test_a_namespace_before_the_command_counts() -> None:
    from click.testing import CliRunner

    result = CliRunner().invoke(cli, ["arena", "-n", "team", "serve", "custom", "--name", "x"])
    assert "There is no command; write it behind the flags." in result.output
