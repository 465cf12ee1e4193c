"""`millpond deploy` and `millpond arena serve` against real servers."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from millpond.cli.main import main
from tests.integration.deployments.conftest import SERVER, DeploymentRoom, get

COMMAND = f"exec {sys.executable} -S {SERVER}"
SMALL = ("--cpus", "0.1", "--ready", "/ready")
Run = Callable[..., str]


@pytest.fixture
def run(rooms: DeploymentRoom, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Run:
    monkeypatch.setenv("MILLPOND_DATA", str(rooms.root))
    monkeypatch.chdir(rooms.work)

    def run_command(*arguments: str, code: int = 0) -> str:
        assert main(list(arguments)) == code
        captured = capfdbinary.readouterr()
        return (captured.err if code else captured.out).decode()

    return run_command


def test_a_deployment_from_the_first_replica_to_the_end(run: Run) -> None:
    assert "cli is ready at http://" in run("deploy", "create", "cli", *SMALL, "--wait", "--", COMMAND)
    assert "There is a deployment 'cli'" in run("deploy", "create", "cli", "--", COMMAND, code=1)
    run("deploy", "update", "cli", "-e", "ANSWER=two", "--wait")
    assert [line.split()[1] for line in run("deploy", "history", "cli").splitlines()] == ["REVISION", "1", "2*"]
    document = json.loads(run("deploy", "get", "cli", "-o", "json"))
    assert get(document["status"]["address"])[1] == b"two"
    assert "cli goes back to revision 1." in run("deploy", "rollback", "cli", "--wait")
    run("deploy", "scale", "cli", "2", "--wait")
    name, phase, ready = run("deploy", "list").splitlines()[1].split()[:3]
    assert (name, phase, ready) == ("cli", "Ready", "2/2")
    assert "REPLICA" in run("deploy", "get", "cli")
    Path("again.yaml").write_text(yaml.safe_dump(yaml.safe_load(run("deploy", "get", "cli", "-o", "yaml"))["spec"]))
    assert "cli unchanged" in run("deploy", "apply", "again.yaml")
    assert "several versions" not in run("deploy", "logs", "cli")
    assert run("deploy", "delete", "cli") == "cli was deleted.\n"
    assert "There is no deployment 'cli'" in run("deploy", "get", "cli", code=1)


def test_what_is_wrong_is_one_sentence(run: Run) -> None:
    assert "v1.run: is missing" in run("deploy", "create", "wrong", code=1)
    assert "'queue' is not NAME=VALUE" in run(
        "deploy", "create", "wrong", "--max", "2", "--target", "queue", "--", "x", code=2
    )
    Path("wrong.yaml").write_text("{name: wrong, run: x, replicaz: 1}")
    assert "Did you mean 'replicas'?" in run("deploy", "apply", "wrong.yaml", code=1)
    assert "wrong" not in run("deploy", "list")


def test_a_rollout_that_fails_says_why(run: Run) -> None:
    text = run("deploy", "create", "fails", *SMALL, "-e", "FAIL_AT_START=1", "--wait", "--", COMMAND, code=1)
    assert "fails: Failing." in text
    assert "ended with code 1" in text
    run("deploy", "delete", "fails")


def test_arenas_words(run: Run) -> None:
    probe = ("--readiness-probe-action", "httpGet", "--readiness-probe-action-option", "path: /ready")
    flags = ("--name=words", "--cpu=100m", *probe)
    said = run("arena", "serve", "custom", *flags, "--version=v1", COMMAND)
    assert "The Job words has been submitted successfully" in said
    run("arena", "serve", "custom", *flags, "--version=v2", "-e", "ANSWER=b", COMMAND)
    run("deploy", "rollout", "words")
    run("arena", "serve", "traffic-router-split", "--name=words", "-v", "v1:3,v2:1")
    run("deploy", "rollout", "words")
    lines = run("arena", "serve", "list").splitlines()
    assert lines[0].split() == ["NAME", "TYPE", "VERSION", "DESIRED", "AVAILABLE", "ADDRESS", "PORTS", "GPU"]
    assert lines[1].split()[:6] == ["words", "Custom", "v1", "1", "1", "127.0.0.1"]
    (v1, v2) = json.loads(run("arena", "serve", "list", "-o", "json"))
    assert (v1["weight"], v2["weight"], v1["availableInstances"]) == (3, 1, 1)
    address = f"http://{v1['ip']}:{v1['endpoints'][0]['port']}"
    assert Counter(get(address)[2] for _ in range(40)) == {"v1": 30, "v2": 10}
    text = run("arena", "serve", "get", "words", "-v", "v2", "-T", "custom")
    assert "Instances:" in text
    assert "Traffic:    25%" in text
    run("arena", "serve", "update", "custom", "--name=words", "--version=v2", "-e", "ANSWER=c")
    run("deploy", "rollout", "words")
    assert get(address, headers={"X-Millpond-Version": "v2"})[1] == b"c"
    assert "words" not in run("arena", "list")
    run("arena", "serve", "delete", "words", "-v", "v2")
    assert "has been deleted" in run("arena", "serve", "delete", "words")
    assert "words" not in run("arena", "serve", "list")
