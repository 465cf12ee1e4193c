"""What a node agent finds out about the wiring of its machine: `nvidia-smi topo -m`, sysfs, or a declared file.

Parsers from text to `NodeWiring`, and the Topology object that carries it to the operator, both ways. Pure; reading the
machine is `agent`'s.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from millpond.api.topology import Nic, NodeWiring
from millpond.base.errors import ConfigError, MillpondError
from millpond.jobs.clusters.kubernetes.kinds import TOPOLOGIES, Object
from millpond.jobs.scheduling.types import NodeSpec
from millpond.jobs.spec_document import Reader

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_LINK = re.compile(r"NV(\d+)")
_NIC_LABEL = re.compile(r"(NIC\d+|mlx\d+_\d+|hns_\d+|bnxt_re\d+|irdma\d+)")
_NEAR = ("PIX", "PXB")  # below one PCIe switch, or a tree of them
_SAME_SOCKET = (*_NEAR, "PHB", "NODE")
_FAST_LINK_GBPS = {"V100": 20.0, "P100": 18.0, "A100": 20.0, "A30": 20.0, "H100": 20.6, "H200": 20.6, "B200": 40.1}
_SWITCH_LINKS = {"V100": 6, "A100": 12, "H100": 18, "H200": 18, "B200": 18}  # a device's links when it sits at a switch
_PCIE_GBPS = {"P100": 10.0, "V100": 10.0, "A100": 24.0, "A30": 24.0, "H100": 48.0, "H200": 48.0, "B200": 48.0}
_PROCESSORS = "CPU Affinity"


class TopologyError(MillpondError):
    """The text does not describe a machine."""

    code = "invalid_topology"


def parse_nvidia_topology(text: str, device_type: str = "", nic_gbps: float = 11.5) -> NodeWiring:
    """Reads the matrix that `nvidia-smi topo -m` prints.

    Args:
        text: What it printed.
        device_type: The model, for the speed of its links.
        nic_gbps: The speed of each network card.

    Raises:
        TopologyError: It is not such a matrix.
    """
    rows = _read_matrix(text)
    gpus = [name for name in rows if name.startswith("GPU")]
    nics = [name for name in rows if not name.startswith("GPU")]
    if not gpus:
        raise TopologyError("The matrix names no GPU.", fix="Pass what `nvidia-smi topo -m` prints.")
    found = {
        (low, high): int(match[1])
        for low, row in enumerate(gpus)
        for high, column in enumerate(gpus)
        if low < high and (match := _LINK.fullmatch(rows[row].get(column, "")))
    }
    device = _model(device_type)
    link_gbps = _FAST_LINK_GBPS.get(device, 20.0)
    pairs = len(gpus) * (len(gpus) - 1) // 2
    # Behind a switch every pair shows all links of a device; direct ones have to be shared out among the neighbours.
    most = max(found.values(), default=0)
    is_switched = len(found) == pairs > 0 and set(found.values()) == {most} and most * (len(gpus) - 1) > 18
    is_switched = is_switched or (len(found) == pairs > 0 and _SWITCH_LINKS.get(device) == most and len(gpus) > 2)
    switches = _groups(gpus, rows, _NEAR)
    return NodeWiring(
        kind=_kind(device, len(gpus), is_switched, found),
        pcie_switch=switches,
        socket=_sockets(gpus, rows),
        links=() if is_switched else tuple((low, high, count) for (low, high), count in sorted(found.items())),
        link_gbps=0.0 if is_switched or not found else link_gbps,
        switch_gbps=round(most * link_gbps, 1) if is_switched else 0.0,
        pcie_gbps=_PCIE_GBPS.get(device, 12.0),
        nics=tuple(Nic(nic_gbps, _switch_of(name, gpus, rows, switches)) for name in nics) or (Nic(1.1),),
    )


def _read_matrix(text: str) -> dict[str, dict[str, str]]:
    """Rows of the matrix by name, each by column. Columns after the devices (affinities) are left out."""
    lines = [_COLOUR.sub("", line).rstrip() for line in text.splitlines()]
    header = next((index for index, line in enumerate(lines) if re.match(r"\s*GPU0\b", line)), None)
    if header is None:
        raise TopologyError("There is no line of column names.", fix="Pass what `nvidia-smi topo -m` prints.")
    names = [word for word in re.split(r"\s+", lines[header].strip()) if re.fullmatch(r"GPU\d+", word)
             or _NIC_LABEL.fullmatch(word)]  # fmt: skip
    rows: dict[str, dict[str, str]] = {}
    for line in lines[header + 1 :]:
        words = re.split(r"\s+", line.strip())
        if words[0] not in names:
            if rows:
                break
            continue
        cells = words[1 : len(names) + 1]
        if len(cells) < len(names):
            raise TopologyError(f"The row of {words[0]} has {len(cells)} cells and there are {len(names)} columns.")
        rows[words[0]] = dict(zip(names, cells, strict=True))
        if re.fullmatch(r"[\d,-]+", next(iter(words[len(names) + 1 :]), "")):
            rows[words[0]][_PROCESSORS] = words[len(names) + 1]
    missing = [name for name in names if name not in rows]
    if missing:
        raise TopologyError(f"There is no row for {', '.join(missing)}.")
    return rows


def _groups(gpus: Sequence[str], rows: Mapping[str, Mapping[str, str]], near: Sequence[str]) -> tuple[int, ...]:
    """Numbers for sets of devices near each other. Pairs with NVLink hide it, but a card that both are near tells."""
    nics = [name for name in rows if name not in gpus]
    cards = {gpu: {nic for nic in nics if rows[gpu].get(nic) in near} for gpu in gpus}
    group: list[int] = []
    for index, gpu in enumerate(gpus):
        same = next(
            (group[other] for other in range(index)
             if rows[gpu].get(gpus[other]) in near or cards[gpu] & cards[gpus[other]]),
            None,
        )  # fmt: skip
        group.append(max(group, default=-1) + 1 if same is None else same)
    return tuple(group)


def _sockets(gpus: Sequence[str], rows: Mapping[str, Mapping[str, str]]) -> tuple[int, ...]:
    """Sockets, by the processors that a device is near to; without that column, by distances."""
    near = [rows[gpu].get(_PROCESSORS, "N/A") for gpu in gpus]
    if "N/A" in near:
        return _groups(gpus, rows, _SAME_SOCKET)
    order = list(dict.fromkeys(near))
    return tuple(order.index(processors) for processors in near)


def _switch_of(nic: str, gpus: Sequence[str], rows: Mapping[str, Mapping[str, str]], switches: Sequence[int]) -> int:
    for distance in ("PIX", "PXB", "PHB", "NODE"):
        for gpu, switch in zip(gpus, switches, strict=True):
            if rows[nic].get(gpu) == distance:
                return switch
    return 0


def _model(device_type: str) -> str:
    return next((model for model in _FAST_LINK_GBPS if model in device_type.upper()), "")


def _kind(device: str, count: int, is_switched: bool, links: Mapping[tuple[int, int], int]) -> str:
    """Equal wiring, equal name: the links are part of it."""
    shape = "switch" if is_switched else "-".join(str(n) for n in links.values()) or "pcie"
    if len(shape) > 40:
        shape = hashlib.sha256(repr(sorted(links.items())).encode()).hexdigest()[:12]
    return f"{device.lower() or 'gpu'}-{count}-{shape}"


def make_topology(node: str, wiring: NodeWiring, device_type: str = "", broken: Sequence[int] = ()) -> Object:
    """The object that an agent posts about its node."""
    spec: dict[str, Any] = {
        "wiring": {
            "kind": wiring.kind,
            "pcieSwitch": list(wiring.pcie_switch),
            "socket": list(wiring.socket),
            "links": [{"low": low, "high": high, "count": count} for low, high, count in wiring.links],
            "linkGBps": wiring.link_gbps,
            "switchGBps": wiring.switch_gbps,
            "pcieGBps": wiring.pcie_gbps,
            "socketGBps": wiring.socket_gbps,
            "nics": [{"gbps": nic.gbps, "pcieSwitch": nic.pcie_switch} for nic in wiring.nics],
        },
        "broken": sorted(broken),
    }
    if device_type:
        spec["deviceType"] = device_type
    return {
        "apiVersion": TOPOLOGIES.api_version,
        "kind": TOPOLOGIES.kind,
        "metadata": {"name": node},
        "spec": spec,
    }


def read_wiring(reader: Reader) -> NodeWiring:
    """The wiring in a Topology, or in a declared file.

    Raises:
        SpecError: A field is wrong.
        ConfigError: The fields contradict each other.
    """
    names = ("kind", "pcieSwitch", "socket", "links", "linkGBps", "switchGBps", "pcieGBps", "socketGBps", "nics")
    reader.check_fields(names)
    switches = tuple(item.integer(0, 4096) for item in reader.need("pcieSwitch").items())
    sockets = reader.find("socket")
    plain = NodeWiring("plain")
    numbers = {
        name: plain_value if found is None else found.number(0)
        for name, plain_value in (("linkGBps", 0.0), ("switchGBps", 0.0), ("pcieGBps", plain.pcie_gbps),
                                  ("socketGBps", plain.socket_gbps))
        for found in (reader.find(name),)
    }  # fmt: skip
    links, nics = reader.find("links"), reader.find("nics")
    return NodeWiring(
        kind=reader.need("kind").text(),
        pcie_switch=switches,
        socket=(0,) * len(switches) if sockets is None else tuple(item.integer(0, 64) for item in sockets.items()),
        links=() if links is None else tuple(_read_link(item) for item in links.items()),
        link_gbps=numbers["linkGBps"],
        switch_gbps=numbers["switchGBps"],
        pcie_gbps=numbers["pcieGBps"],
        socket_gbps=numbers["socketGBps"],
        nics=plain.nics if nics is None else tuple(_read_nic(item) for item in nics.items()),
    )


def _read_link(reader: Reader) -> tuple[int, int, int]:
    reader.check_fields(("low", "high", "count"))
    low, high, count = (reader.need(name).integer(0, 4096) for name in ("low", "high", "count"))
    return low, high, count


def _read_nic(reader: Reader) -> Nic:
    reader.check_fields(("gbps", "pcieSwitch"))
    switch = reader.find("pcieSwitch")
    return Nic(reader.need("gbps").number(0), 0 if switch is None else switch.integer(0, 4096))


def with_topology(node: NodeSpec, topology: Object) -> NodeSpec:
    """A node with the wiring that its agent found.

    Raises:
        SpecError, ConfigError: The object is wrong.
    """
    spec = Reader(topology.get("spec") or {}, "spec").check_fields(("wiring", "broken", "deviceType"))
    wiring = read_wiring(spec.need("wiring"))
    device, broken = spec.find("deviceType"), spec.find("broken")
    numbers = frozenset() if broken is None else frozenset(item.integer(0, 4096) for item in broken.items())
    if any(number >= wiring.num_devices for number in numbers):
        raise ConfigError("spec.broken names a device that the wiring does not have.", fix="Count from 0.")
    return dataclasses.replace(
        node, wiring=wiring, broken=numbers, device_type=node.device_type if device is None else device.text()
    )
