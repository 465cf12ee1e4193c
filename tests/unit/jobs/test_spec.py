from __future__ import annotations

import pytest

from millpond.api.job import CleanPolicy, RestartPolicy, SpecError, StartAfter, StartPhase
from millpond.jobs.spec import load_jobs

SHORT = """
name: mnist
framework: pytorch
tenant: research
priority: 5
run: python train.py
env: {EPOCHS: 3}
ttl: 1h30m
roles:
  master: {devices: 1, cpus: 500m}
  worker: {replicas: 2, devices: 1, memory: 4GiB, spot: 1, env: {EPOCHS: "4"}}
"""


def error_of(text: str) -> SpecError:
    with pytest.raises(SpecError) as caught:
        load_jobs(text)
    return caught.value


def test_the_short_form_loads() -> None:
    (job,) = load_jobs(SHORT)
    assert (job.name, job.framework, job.tenant, job.priority, job.ttl_s) == ("mnist", "pytorch", "research", 5, 5400)
    master, worker = job.roles
    assert (master.name, master.replicas, master.resources.cpus) == ("Master", 1, 0.5)
    assert master.command == ("/bin/sh", "-c", "python train.py")
    assert (worker.replicas, worker.resources.memory_bytes) == (2, 4 << 30)
    assert worker.spot is not None
    assert worker.spot.replicas == 1
    assert (master.env, worker.env) == ({"EPOCHS": "3"}, {"EPOCHS": "4"})


def test_what_is_not_said_comes_from_the_framework() -> None:
    master, worker = load_jobs(SHORT)[0].roles
    assert (master.restart, worker.restart) == (RestartPolicy.EXIT_CODE, RestartPolicy.ON_FAILURE)
    assert worker.after == (StartAfter("Master", StartPhase.RUNNING),)
    assert worker.port == 23456


def test_a_start_order_of_ones_own_replaces_the_frameworks() -> None:
    (job,) = load_jobs("{name: a, framework: tf, run: x, roles: {ps: {}, worker: {after: {ps: succeeded}}}}")
    assert job.roles[1].after == (StartAfter("PS", StartPhase.SUCCEEDED),)


def test_a_job_of_one_line_is_a_plain_job() -> None:
    (job,) = load_jobs("{name: hello, run: [echo, hi]}")
    assert (job.framework, job.roles[0].name, job.roles[0].command) == ("plain", "Worker", ("echo", "hi"))
    assert job.clean_policy is CleanPolicy.RUNNING


@pytest.mark.parametrize(
    ("text", "path", "says"),
    [
        ("{name: a, run: x, rols: {}}", "rols", "Did you mean 'roles'?"),
        ("{name: a, run: x, roles: {worker: {replica: 2}}}", "roles.worker.replica", "Did you mean 'replicas'?"),
        ("{name: a, run: x, framework: pytorsh}", "framework", "Did you mean 'pytorch'?"),
        ("{name: a, run: x, framework: tf, roles: {workr: {}}}", "roles.workr", "Did you mean 'Worker'?"),
        ("{name: a, run: x, roles: {worker: {replicas: two}}}", "roles.worker.replicas", "whole number"),
        ("{name: a, run: x, roles: {worker: {replicas: -1}}}", "roles.worker.replicas", "from 0"),
        ("{name: a, run: x, roles: {worker: {replicas: true}}}", "roles.worker.replicas", "true or false"),
        ("{name: a, run: x, roles: {worker: {spot: 2}}}", "roles.worker", "2 spot replicas"),
        ("{name: a, run: x, roles: {worker: {replicas: 0}}}", "roles", "no role has a replica"),
        ("{name: a, roles: {worker: {}}}", "roles.worker", "no command"),
        ("{name: A_b, run: x}", "name", "small letters"),
        ("{run: x}", "name", "is missing"),
        ("{name: a, run: x, env: {A: yes}}", "env.A", "quotes"),
        ("{name: a, run: x, cron: {schedule: '61 * * * *'}}", "cron.schedule", "minute"),
        ("{name: a, run: x, cron: {schedule: '0 0 30 2 *'}}", "cron.schedule", "never comes"),
        ("{name: a, run: x, code: {git: '--upload-pack=x'}}", "code.git", "must not start"),
        ("{name: a, run: x, ttl: soon}", "ttl", "not a duration"),
        ("{name: a, run: x, min_available: 3}", "document", "more than the 1 replicas"),
        ("{name: a, name: b, run: x}", "name", "twice"),
        (
            "{name: a, framework: tf, run: x, roles: {ps: {after: worker}, worker: {after: ps}}}",
            "roles.ps",
            "PS -> Worker -> PS",
        ),
    ],
)
def test_an_error_names_the_field_and_the_way_out(text: str, path: str, says: str) -> None:
    error = error_of(text)
    assert path in (error.param or "document"), error
    assert says in str(error)


def test_an_error_names_the_line() -> None:
    assert "(line 3)" in error_of("name: a\nrun: x\nprioritty: 1\n").message


@pytest.mark.parametrize(
    "text",
    [
        "a: [",
        "",
        "just a text",
        "- 1",
        "&a [*a]",
        "!!python/object/apply:os.system [ls]",
        "{name: a, run: x, priority: 0o17}",
        "{name: a, run: x, priority: 1:30}",
        "{name: a, run: x, priority: .inf}",
        '{name: a, run: "x\\0"}',
        "a: &a [x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\n"
        "d: &d [*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e,*e]",
        "[" * 2000,
        "a: " + "x" * (1 << 20),
    ],
)
def test_what_is_no_sane_yaml_is_one_error(text: str) -> None:
    assert error_of(text).message


def test_one_bad_document_spoils_the_file() -> None:
    with pytest.raises(SpecError):
        load_jobs("{name: a, run: x}\n---\n{name: b, run: x, oops: 1}")


def test_two_jobs_of_one_name_are_an_error() -> None:
    assert "two documents" in error_of("{name: a, run: x}\n---\n{name: a, run: y}").message
