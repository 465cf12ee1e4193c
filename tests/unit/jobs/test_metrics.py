from __future__ import annotations

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from millpond.jobs.metrics import jobs_metrics
from millpond.jobs.status import job_status
from tests.support.jobs_room import JobsRoom


def series(room: JobsRoom) -> dict[tuple[str, str], float]:
    text = jobs_metrics([job_status(record.state) for record in room.store.records()], room.now_s)
    return {
        (sample.name, ",".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_jobs_are_counted_by_kind_and_phase(tmp_path: Path) -> None:
    room = JobsRoom(tmp_path / "jobs.sqlite", cpus=1.0)
    room.submit("{name: a, run: x}\n---\n{name: b, run: x}\n---\n{name: c, framework: pytorch, run: x}")
    room.turn()
    found = series(room)
    counted = {labels: value for (name, labels), value in found.items() if name == "millpond_jobs"}
    assert sum(counted.values()) == 3
    assert counted["Job,Running"] + counted["Job,Queuing"] == 2
    assert found["millpond_jobs_longest_wait_seconds", ""] > 0


def test_the_number_of_series_does_not_grow_with_names_tenants_and_namespaces(tmp_path: Path) -> None:
    room = JobsRoom(tmp_path / "jobs.sqlite", cpus=1.0)
    room.submit("{name: a, run: x}\n---\n{name: b, run: x}")
    room.turn()
    few = series(room)
    for number in range(60):
        room.submit(f"{{name: j{number}, namespace: n{number}, tenant: t{number}, run: x, env: {{A: '{number}'}}}}")
    room.turn()
    assert few.keys() == series(room).keys()
