from __future__ import annotations

from pathlib import Path

from millpond.cli.arena.views import get_text, job_document, list_table, top_jobs, top_nodes
from millpond.cli.jobs.tables import age, table
from millpond.jobs.looking import NodeStatus
from tests.support.jobs_room import JobsRoom


def make_room(tmp_path: Path) -> JobsRoom:
    room = JobsRoom(tmp_path / "jobs.sqlite", devices=4)
    room.submit(
        "{name: bert, framework: pytorch, run: x, roles: {master: {devices: 1}, worker: {devices: 2}}}\n---\n"
        "{name: big, namespace: other, run: x, roles: {worker: {devices: 4}}}"
    )
    room.turn()
    return room


def test_list_has_arenas_columns(tmp_path: Path) -> None:
    room = make_room(tmp_path)
    lines = list_table([room.status("bert"), room.status("big")], room.now_s).splitlines()
    assert lines[0].split() == ["NAME", "STATUS", "TRAINER", "DURATION", "GPU(Requested)", "GPU(Allocated)", "NODE"]
    assert lines[1].split() == ["bert", "RUNNING", "PYTORCHJOB", "0s", "3", "3", "node"]
    assert lines[2].split() == ["big", "PENDING", "JOB", "0s", "4", "N/A", "N/A"]


def test_list_of_all_namespaces_names_them_first(tmp_path: Path) -> None:
    room = make_room(tmp_path)
    lines = list_table([room.status("big")], room.now_s, with_namespace=True).splitlines()
    assert lines[0].startswith("NAMESPACE  NAME")
    assert lines[1].startswith("other      big")


def test_get_has_arenas_blocks(tmp_path: Path) -> None:
    room = make_room(tmp_path)
    text = get_text(room.status("bert"), room.now_s, room.store.events(room.status("bert").uid), with_gpus=True)
    lines = text.splitlines()
    assert lines[:5] == [
        "Name:      bert", "Status:    RUNNING", "Namespace: default", "Priority:  N/A", "Trainer:   PYTORCHJOB",
    ]  # fmt: skip
    head = lines.index("Instances:") + 1
    assert lines[head].split() == ["NAME", "STATUS", "AGE", "IS_CHIEF", "GPU(Requested)", "NODE"]
    assert lines[head + 1].split()[0] == "----"
    assert lines[head + 2].split() == ["bert-master-0", "Running", "0s", "true", "1", "node"]
    assert "Allocated/Requested GPUs of Job: 3/3" in lines
    assert "Events:" in lines


def test_a_waiting_job_says_why_in_get(tmp_path: Path) -> None:
    text = get_text(make_room(tmp_path).status("big"), 0.0)
    assert "Waiting:" in text
    assert "devices" in text


def test_the_document_has_arenas_keys(tmp_path: Path) -> None:
    room = make_room(tmp_path)
    document = job_document(room.status("bert"), room.now_s)
    expected = {
        "name", "namespace", "duration", "status", "trainer", "tensorboard", "chiefName", "instances", "priority",
        "requestGPUs", "allocatedGPUs",
    }  # fmt: skip
    assert expected <= set(document)
    assert document["chiefName"] == "bert-master-0"
    instances = document["instances"]
    assert isinstance(instances, list)
    assert set(instances[0]) == {"ip", "status", "name", "age", "node", "nodeIP", "chief", "requestGPUs", "gpuMetrics"}


def test_top_sums_up(tmp_path: Path) -> None:
    room = make_room(tmp_path)
    assert top_jobs([room.status("bert"), room.status("big")], room.now_s).endswith("3/7 (42.9%)")
    text = top_nodes([NodeStatus("n", "127.0.0.1", 8.0, 0, 4, "", used_cpus=2.0, used_devices=1)])
    assert "1/4 (25.0%)" in text.splitlines()
    assert text.splitlines()[0].split() == ["NAME", "IPADDRESS", "ROLE", "STATUS", "GPU(Total)", "GPU(Allocated)"]


def test_top_node_without_accelerators_says_what_to_declare() -> None:
    assert "devices: N" in top_nodes([NodeStatus("n", "127.0.0.1", 8.0, 0, 0, "")])


def test_ages_have_one_unit() -> None:
    assert [age(s) for s in (0, 119, 120, 7199, 7200, 172_800)] == ["0s", "119s", "2m", "119m", "2h", "2d"]


def test_columns_line_up() -> None:
    assert table(("A", "LONG"), [("xyz", 1), ("x", 22)]) == "A    LONG\nxyz  1\nx    22"
