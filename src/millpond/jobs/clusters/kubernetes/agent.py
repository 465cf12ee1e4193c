"""The node agent: finds out how the machine's accelerators are wired and posts it as a Topology.

Asks, in this order, a declared file, `nvidia-smi`, and sysfs. Posts again when the answer changes, so that a device
that fails is used no more. Runs as a DaemonSet; owns no decision.
"""

from __future__ import annotations

import asyncio
import logging
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from millpond.api.topology import Nic, NodeWiring, plain_wiring
from millpond.jobs.clusters.kubernetes.client import ApiError, KubernetesApi
from millpond.jobs.clusters.kubernetes.kinds import TOPOLOGIES, Object
from millpond.jobs.clusters.kubernetes.topology import (
    TopologyError,
    make_topology,
    parse_nvidia_topology,
    read_wiring,
)
from millpond.jobs.spec_document import read_documents

Run = Callable[[Sequence[str]], str]

_ACCELERATOR_CLASSES = ("0x0302", "0x1200")  # PCI: 3D controller, processing accelerator
_NIC_CLASS = "0x0207"  # InfiniBand controller
_TIMEOUT_S = 60.0
_log = logging.getLogger(__name__)


def run_program(command: Sequence[str]) -> str:
    """What a program prints.

    Raises:
        TopologyError: It is not there, or it fails.
    """
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError) as error:
        raise TopologyError(f"{command[0]} says nothing: {error}") from None
    return done.stdout


def find_topology(node: str, declared: Path | None, sysfs: Path, run: Run = run_program) -> Object | None:
    """The Topology of this machine, or None when it has no accelerators.

    Raises:
        MillpondError: The declared file is wrong.
    """
    if declared is not None:
        return _read_declared(node, declared)
    try:
        return _ask_nvidia(node, run)
    except TopologyError as error:
        _log.info("%s", error)
    found = read_sysfs(sysfs)
    return None if found.num_devices == 0 else make_topology(node, found)


def read_sysfs(root: Path) -> NodeWiring:
    """Accelerators and network cards by their place in the PCI tree: switches and sockets, no direct links."""
    devices: list[tuple[str, int]] = []
    cards: list[str] = []
    for place in sorted((root / "bus/pci/devices").glob("*")):
        kind = _read(place / "class")[:6]
        bridge = _bridge_of(place)
        if kind in _ACCELERATOR_CLASSES:
            devices.append((bridge, max(0, int(_read(place / "numa_node") or 0))))
        elif kind == _NIC_CLASS:
            cards.append(bridge)
    if not devices:
        return plain_wiring(0)
    bridges = list(dict.fromkeys(bridge for bridge, _ in devices))
    switches = tuple(bridges.index(bridge) for bridge, _ in devices)
    sockets = tuple(socket for _, socket in devices)
    shape = "-".join(f"{switch}.{socket}" for switch, socket in zip(switches, sockets, strict=True))
    nics = tuple(Nic(11.5, bridges.index(bridge)) for bridge in cards if bridge in bridges)
    return NodeWiring(f"pci-{shape}"[:60], switches, sockets, nics=nics or (Nic(1.1),))


async def keep_posted(
    api: KubernetesApi, node: str, find: Callable[[], Object | None], every_s: float, rounds: int | None = None
) -> None:
    """Posts the Topology, and again when it changes. `rounds`: stop after so many looks."""
    posted: Object | None = None
    while rounds is None or rounds > 0:
        found = await asyncio.to_thread(find)
        if found is not None and found != posted:
            try:
                await post(api, found)
                posted = found
                _log.info("Posted the Topology of %s", node)
            except ApiError as error:
                _log.warning("%s", error)
        if rounds is not None:
            rounds -= 1
        await asyncio.sleep(every_s)


async def post(api: KubernetesApi, topology: Object) -> None:
    """Creates the Topology, or replaces what there is."""
    name = topology["metadata"]["name"]
    old = await api.get(TOPOLOGIES, "", name)
    if old is None:
        await api.create(TOPOLOGIES, topology)
    elif old.get("spec") != topology["spec"]:
        metadata = {"name": name, "resourceVersion": old["metadata"]["resourceVersion"]}
        await api.replace(TOPOLOGIES, topology | {"metadata": metadata})


def _ask_nvidia(node: str, run: Run) -> Object:
    matrix = run(["nvidia-smi", "topo", "-m"])
    listed = run(["nvidia-smi", "--query-gpu=index,name,pstate", "--format=csv,noheader"])
    rows = [[cell.strip() for cell in line.split(",")] for line in listed.splitlines() if line.strip()]
    names = sorted({row[1] for row in rows if len(row) > 1})
    device_type = re.sub(r"[^A-Za-z0-9.-]+", "-", names[0]) if names else ""
    wiring = parse_nvidia_topology(matrix, device_type)
    working = {int(row[0]) for row in rows if row and row[0].isdigit() and "err" not in row[-1].casefold()}
    broken = [device for device in range(wiring.num_devices) if device not in working]
    return make_topology(node, wiring, device_type, broken)


def _read_declared(node: str, path: Path) -> Object:
    document = read_documents(path.read_text(encoding="utf-8"))[0].check_fields(("wiring", "deviceType", "broken"))
    device, broken = document.find("deviceType"), document.find("broken")
    numbers = [] if broken is None else [item.integer(0, 4096) for item in broken.items()]
    wiring = read_wiring(document.need("wiring"))
    return make_topology(node, wiring, "" if device is None else device.text(), numbers)


def _bridge_of(place: Path) -> str:
    """The PCI switch above a device: devices below one switch share the second bridge above them, or the first."""
    parts = [part for part in place.resolve().parts if re.fullmatch(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.\d", part)]
    above = parts[:-1]
    return above[-2] if len(above) > 1 else above[-1] if above else ""


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
