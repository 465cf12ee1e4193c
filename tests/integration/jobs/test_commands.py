"""The command line from a submit to a record, with a controller that nobody started by hand."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from millpond.cli.main import main
from tests.integration.jobs.conftest import LocalRoom


@pytest.fixture
def at_home(room: LocalRoom, monkeypatch: pytest.MonkeyPatch) -> LocalRoom:
    monkeypatch.setenv("MILLPOND_DATA", str(room.root))
    monkeypatch.chdir(room.work)
    return room


def test_a_job_from_submit_to_record(at_home: LocalRoom, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    def run(*arguments: str) -> str:
        assert main(list(arguments)) == 0
        return capfdbinary.readouterr().out.decode()

    Path("job.yaml").write_text("{name: hello, run: 'echo one; echo two', roles: {worker: {replicas: 1}}}")
    assert "hello was submitted" in run("jobs", "submit", "job.yaml", "--wait")
    assert "Succeeded" in run("jobs", "list")
    assert json.loads(run("jobs", "get", "hello", "-o", "json"))["phase"] == "Succeeded"
    assert run("jobs", "logs", "hello") == "one\ntwo\n"
    assert run("arena", "logs", "hello", "-t", "1") == "two\n"
    assert "hello" in run("arena", "list")
    assert "hello was deleted" in run("jobs", "prune")
    assert "hello" not in run("jobs", "list")
    assert "Succeeded (deleted)" in run("jobs", "list", "--all")
    (log,) = (at_home.place.decisions).glob("*.jsonl")
    at_home.kill_controller(signal.SIGTERM)
    assert "all equal" in run("jobs", "replay", str(log))


def test_a_success_is_listed_as_a_version(at_home: LocalRoom, capsys: pytest.CaptureFixture[str]) -> None:
    Path("job.yaml").write_text("{name: fit, run: 'test -n $KUBEDL_MODEL_PATH', model_version: {name: m, path: /m}}")
    assert main(["jobs", "submit", "job.yaml", "--wait"]) == 0
    capsys.readouterr()
    assert main(["jobs", "versions"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("m      mv-fit-")


def test_logs_follow_a_job_to_its_end(at_home: LocalRoom, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    at_home.client.submit("{name: a, run: 'for i in 1 2 3; do echo $i; sleep 0.2; done'}")
    assert main(["jobs", "logs", "-f", "a"]) == 0
    assert capfdbinary.readouterr().out == b"1\n2\n3\n"


def test_a_job_that_fails_fails_the_wait(at_home: LocalRoom) -> None:
    Path("job.yaml").write_text("{name: bad, run: exit 3}")
    assert main(["jobs", "submit", "job.yaml", "--wait"]) == 1


def test_a_bad_file_creates_nothing(at_home: LocalRoom, capsys: pytest.CaptureFixture[str]) -> None:
    Path("job.yaml").write_text("{name: good, run: x}\n---\n{name: bad, rnu: x}")
    assert main(["jobs", "submit", "job.yaml"]) == 1
    assert "rnu (line 3): there is no such field. Did you mean 'run'?" in capsys.readouterr().err
    assert at_home.client.jobs() == []


def test_whats_asked_of_a_job_that_is_not_there_has_a_suggestion(
    at_home: LocalRoom, capsys: pytest.CaptureFixture[str]
) -> None:
    at_home.client.submit("{name: hello, run: x}")
    assert main(["arena", "get", "helo"]) == 1
    assert "Did you mean 'hello'?" in capsys.readouterr().err


def test_a_cluster_file_that_is_wrong_is_shown_to_whoever_submits(
    at_home: LocalRoom, capsys: pytest.CaptureFixture[str]
) -> None:
    at_home.place.settings.write_text("slotz: 4")
    Path("job.yaml").write_text("{name: hello, run: x}")
    assert main(["jobs", "submit", "job.yaml"]) == 1
    assert "slotz (line 1): there is no such field. Did you mean 'slots'?" in capsys.readouterr().err
    at_home.place.settings.unlink()
    assert at_home.client.jobs() == []
