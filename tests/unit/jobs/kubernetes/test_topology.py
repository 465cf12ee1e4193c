"""What `nvidia-smi topo -m` and sysfs print, against wirings known from elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from millpond.api.job import SpecError
from millpond.api.topology import dgx1v_wiring
from millpond.base.errors import ConfigError
from millpond.jobs.clusters.kubernetes.agent import find_topology, read_sysfs
from millpond.jobs.clusters.kubernetes.nodes import is_usable, read_node
from millpond.jobs.clusters.kubernetes.topology import (
    TopologyError,
    make_topology,
    parse_nvidia_topology,
    read_wiring,
)
from millpond.jobs.scheduling.rings import WiringModel, mask_of
from millpond.jobs.spec_document import Reader

TEXTS = Path(__file__).parent / "topologies"


def _node(devices: int, **spec: object) -> dict[str, object]:
    ready = [{"type": "Ready", "status": "True"}]
    allocatable = {"cpu": "31500m", "memory": "65536Ki", "nvidia.com/gpu": str(devices)}
    labels = {"nvidia.com/gpu.product": "V100", "topology.kubernetes.io/rack": "r7"}
    return {"metadata": {"name": "n1", "labels": labels}, "spec": spec,
            "status": {"allocatable": allocatable, "conditions": ready}}  # fmt: skip


def test_dgx1_matrix_is_the_known_hybrid_cube_mesh() -> None:
    found, known = parse_nvidia_topology((TEXTS / "dgx1v.txt").read_text(), "Tesla-V100-SXM2-16GB"), dgx1v_wiring()
    assert found.links == known.links
    assert (found.link_gbps, found.switch_gbps) == (20.0, 0.0)
    assert found.pcie_switch == known.pcie_switch
    assert found.socket == known.socket
    assert found.nics == known.nics


def test_rings_of_a_parsed_dgx1_are_those_of_the_published_table() -> None:
    model = WiringModel(parse_nvidia_topology((TEXTS / "dgx1v.txt").read_text(), "V100"))
    assert model.ring(mask_of((0, 1, 2, 3))).gbps == 80.0
    assert model.ring(mask_of(range(8))).gbps == 120.0
    assert model.ring(mask_of((0, 1, 2, 4, 5))).gbps == 40.0


def test_all_to_all_is_a_switch() -> None:
    found = parse_nvidia_topology((TEXTS / "nvswitch.txt").read_text(), "NVIDIA-H100-80GB-HBM3")
    assert found.links == ()
    assert found.switch_gbps == pytest.approx(18 * 20.6)
    assert found.socket == (0, 0, 1, 1)
    assert [nic.pcie_switch for nic in found.nics] == [found.pcie_switch[0], found.pcie_switch[2]]


def test_without_links_distances_tell_switches_and_sockets() -> None:
    found = parse_nvidia_topology((TEXTS / "pcie.txt").read_text())
    assert (found.links, found.pcie_switch, found.socket) == ((), (0, 0, 1, 2), (0, 0, 0, 1))


def test_bridged_pairs_are_links_and_no_switch() -> None:
    found = parse_nvidia_topology((TEXTS / "bridge_pairs.txt").read_text(), "A100")
    assert (found.links, found.switch_gbps) == (((0, 1, 4), (2, 3, 4)), 0.0)


def test_equal_machines_have_equal_kinds_and_others_do_not() -> None:
    kinds = {parse_nvidia_topology(path.read_text(), "V100").kind for path in sorted(TEXTS.glob("*.txt"))}
    again = {parse_nvidia_topology(path.read_text(), "V100").kind for path in sorted(TEXTS.glob("*.txt"))}
    assert kinds == again
    assert len(kinds) == 4


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no line of column names"),
        ("bash: nvidia-smi: command not found", "no line of column names"),
        ("  GPU0 GPU1\nGPU0 X NV1", "no row for GPU1"),
        ("  GPU0 GPU1\nGPU0 X\nGPU1 NV1 X", "has 1 cells"),
    ],
)
def test_other_texts_are_refused(text: str, problem: str) -> None:
    with pytest.raises(TopologyError, match=problem):
        parse_nvidia_topology(text)


@pytest.mark.parametrize("path", sorted(TEXTS.glob("*.txt")), ids=lambda path: path.stem)
def test_wiring_survives_the_object(path: Path) -> None:
    wiring = parse_nvidia_topology(path.read_text(), "V100")
    assert read_wiring(Reader(make_topology("n1", wiring)["spec"]["wiring"], "spec.wiring")) == wiring


def test_node_takes_wiring_and_broken_devices_from_its_agent() -> None:
    topology = make_topology("n1", dgx1v_wiring(), "V100", [5])
    found = read_node(_node(8), topology, reserved_cpus=1.5)
    assert (found.wiring, found.device_type, found.broken) == (dgx1v_wiring(), "V100", frozenset({5}))
    assert (found.cpus, found.memory_bytes, found.rack) == (30.0, 65536 << 10, "r7")


def test_node_without_an_agent_has_equal_devices() -> None:
    found = read_node(_node(4), None)
    assert (found.wiring.num_devices, found.wiring.links, found.device_type) == (4, (), "V100")


@pytest.mark.parametrize("broken", [[8], [-1], ["0"]])
def test_topology_with_wrong_devices_is_refused(broken: list[object]) -> None:
    topology = make_topology("n1", dgx1v_wiring())
    topology["spec"]["broken"] = broken
    with pytest.raises((SpecError, ConfigError), match=r"spec\.broken"):
        read_node(_node(8), topology)


@pytest.mark.parametrize(
    ("spec", "is_usable_"),
    [
        ({}, True),
        ({"unschedulable": True}, False),
        ({"taints": [{"key": "jobs.millpond.io/dedicated", "effect": "NoSchedule"}]}, True),
        ({"taints": [{"key": "node.kubernetes.io/disk-pressure", "effect": "NoSchedule"}]}, False),
        ({"taints": [{"key": "soft", "effect": "PreferNoSchedule"}]}, True),
    ],
)
def test_taints_and_cordons_close_a_node(spec: dict[str, object], is_usable_: bool) -> None:
    assert is_usable(_node(0, **spec)) is is_usable_


def test_agent_marks_a_device_that_answers_with_an_error() -> None:
    answers = {"topo": (TEXTS / "bridge_pairs.txt").read_text(),
               "--query-gpu=index,name,pstate": "0, NVIDIA A100, P0\n1, NVIDIA A100, ERR!\n2, NVIDIA A100, P0\n3, "
               "NVIDIA A100, P0\n"}  # fmt: skip
    found = find_topology("n1", None, Path("/nowhere"), lambda command: answers[command[1]])
    assert found is not None
    assert found["spec"]["broken"] == [1]
    assert found["spec"]["deviceType"] == "NVIDIA-A100"


def test_agent_prefers_what_is_declared(tmp_path: Path) -> None:
    path = tmp_path / "wiring.yaml"
    path.write_text("deviceType: Ascend910\nwiring: {kind: npu, pcieSwitch: [0, 0], links: "
                    "[{low: 0, high: 1, count: 3}], linkGBps: 30}\n")  # fmt: skip
    found = find_topology("n1", path, tmp_path)
    assert found is not None
    assert found["spec"]["deviceType"] == "Ascend910"
    assert found["spec"]["wiring"]["links"] == [{"low": 0, "high": 1, "count": 3}]


def test_sysfs_tells_switches_sockets_and_cards(tmp_path: Path) -> None:
    """Two accelerators and a card below one switch, one accelerator below another on the second socket."""
    places = {
        "0000:00:01.0/0000:01:00.0/0000:02:00.0/0000:03:00.0": ("0x030200", "0"),
        "0000:00:01.0/0000:01:00.0/0000:02:04.0/0000:04:00.0": ("0x030200", "0"),
        "0000:00:01.0/0000:01:00.0/0000:02:08.0/0000:05:00.0": ("0x020700", "0"),
        "0000:80:01.0/0000:81:00.0/0000:82:00.0/0000:83:00.0": ("0x120000", "1"),
    }
    bus = tmp_path / "bus/pci/devices"
    bus.mkdir(parents=True)
    for way, (kind, socket) in places.items():
        real = tmp_path / "devices" / f"pci{way[:7]}" / way
        real.mkdir(parents=True)
        (real / "class").write_text(kind + "\n")
        (real / "numa_node").write_text(socket + "\n")
        (bus / real.name).symlink_to(real)
    found = read_sysfs(tmp_path)
    assert (found.pcie_switch, found.socket) == ((0, 0, 1), (0, 0, 1))
    assert [nic.pcie_switch for nic in found.nics] == [0]


def test_machine_without_accelerators_posts_nothing(tmp_path: Path) -> None:
    def refuse(command: object) -> str:
        raise TopologyError("there is no such program")

    assert find_topology("n1", None, tmp_path, refuse) is None
