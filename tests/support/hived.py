"""HiveD's design example: its 23 machines, two virtual clusters and 46 pods in 34 groups, as requests to our scheduler.

Facts are those of `example/config/design` and of HiveD's test of its algorithm. A virtual cluster becomes a tenant that
is guaranteed as many devices of a type as it owns cells. A pinned cell becomes a label that its jobs select and nobody
else's do. HiveD's opportunistic pods (priority -1) are spot jobs. A machine with two types of devices becomes two.
"""

from __future__ import annotations

from collections.abc import Iterable

from millpond.api.topology import Nic, NodeWiring, nvswitch_wiring
from millpond.jobs.scheduling.types import GangRequest, NodeJoined, NodeSpec, RoleRequest, TenantChanged, TenantSpec
from tests.support.gangs import Bench, role

P100, DGX2, IB, CT1 = "DGX1-P100", "DGX2-V100", "IB-DGX2-V100", "CT1"
PIN_DGX2, PIN_CT1, PIN_IB = "VC1-YQW-DGX2", "VC1-YQW-CT1", "VC1-YQW-IB-DGX2"
OWN = {  # devices of the cells each virtual cluster owns: quota and pinned ones together
    "VC1": {DGX2: (2 + 2 + 2 + 2 + 2) * 16.0, CT1: 1.0, IB: 32.0, P100: 0.0},
    "VC2": {P100: 2 * 8.0 + 2 * 4.0, CT1: 2.0, DGX2: 0.0, IB: 0.0},
}
ALL = tuple(range(16))
# Group -> virtual cluster, priority, type of device, pin, devices of each pod.
GROUPS: dict[int, tuple[str, int, str | None, str, tuple[int, ...]]] = {
    1: ("VC1", 0, DGX2, "", (1,)),
    2: ("VC1", 1, DGX2, "", (1,)),
    3: ("VC1", 2, DGX2, "", (8,)),
    4: ("VC1", -1, DGX2, "", (1,)),
    5: ("VC1", 1, DGX2, PIN_DGX2, (16, 16)),
    6: ("VC2", 1, DGX2, "", (1,)),
    7: ("VC2", 1, P100, "", (8, 8, 8)),
    9: ("VC2", 1, None, "", (7, 5)),
    11: ("VC1", 2, DGX2, PIN_DGX2, (16, 16)),
    12: ("VC1", 1, DGX2, "", (16, 16)),
    13: ("VC1", 1, DGX2, "", (16, 16)),
    14: ("VC1", -1, DGX2, "", (16, 16)),
    15: ("VC2", 0, CT1, "", (2,)),
    16: ("VC2", 1, CT1, "", (2,)),
    17: ("VC2", 2, CT1, "", (2,)),
    18: ("VC1", 1, DGX2, PIN_DGX2, (16, 16)),
    19: ("VC1", 1, DGX2, PIN_DGX2, (16, 16)),
    20: ("VC1", 2, DGX2, PIN_DGX2, (16,)),
    21: ("VC1", 1, DGX2, PIN_DGX2, (16,)),
    22: ("VC1", 2, DGX2, PIN_DGX2, (16,)),
    23: ("VC1", 2, DGX2, PIN_DGX2, (16,)),
    24: ("VC1", 3, DGX2, PIN_DGX2, (16, 16)),
    25: ("VC1", 4, DGX2, PIN_DGX2, (16,)),
    26: ("VC1", 5, DGX2, PIN_DGX2, (16, 16)),
    27: ("VC1", 1, DGX2, "", (16, 16)),
    28: ("VC1", 1, DGX2, "", (16,)),
    29: ("VC1", 2, DGX2, "", (16, 16, 16, 16)),
    30: ("VC1", 0, DGX2, "", (16,)),
    31: ("VC2", 0, DGX2, "", (16,)),
    32: ("VC1", 0, DGX2, "", (16,)),
    33: ("VC1", 0, DGX2, "", (16,)),
    34: ("VC1", 0, DGX2, "", (16,)),
}


def request(group: int, name: str = "", **more: object) -> GangRequest:
    """A group as one job: equal pods are one role."""
    tenant, priority, kind, pin, pods = GROUPS[group]
    roles: tuple[RoleRequest, ...] = tuple(
        role(f"pods{size}", pods.count(size), size, device_type=kind) for size in dict.fromkeys(pods)
    )
    return GangRequest(
        name or f"group{group}", tenant, roles, priority=priority, spot=priority < 0, selector=(("pin", pin),), **more
    )  # type: ignore[arg-type]


def tree_wiring(kind: str, sockets: tuple[tuple[tuple[int, ...], ...], ...]) -> NodeWiring:
    """Devices below PCIe switches below sockets, numbered as the machine numbers them."""
    places = {
        device: (switch, socket)
        for socket, switches in enumerate(sockets)
        for switch, devices in enumerate(switches, start=2 * socket)
        for device in devices
    }
    ordered = [places[device] for device in sorted(places)]
    return NodeWiring(kind, tuple(s for s, _ in ordered), tuple(s for _, s in ordered), nics=(Nic(11.5),))


def machines() -> list[NodeSpec]:
    """The physical cluster; a rack is a cell of several machines."""
    p100 = tree_wiring("p100", (((0, 1), (2, 3)), ((4, 5), (6, 7))))
    permuted = tree_wiring("p100-permuted", (((0, 2), (6, 5)), ((1, 3), (4, 7))))
    ct1 = tree_wiring("ct1", (((0, 1),),))
    dgx2 = nvswitch_wiring(16, kind="dgx-2", switch_gbps=120.0)
    found = [NodeSpec(f"0.0.0.{n}", ct1, CT1, rack=f"ct{n}", labels=(("pin", ""),)) for n in range(2)]
    found.append(NodeSpec("1.0.0.2/ct1", ct1, CT1, rack="ct2", labels=(("pin", PIN_CT1),)))
    for name, wiring in (("1.0.0.2", p100), ("1.0.0.1", p100), ("1.0.0.0", permuted)):
        found.append(NodeSpec(name, wiring, P100, rack="p100", labels=(("pin", ""),)))
    racks = {"0.0.1.0": "1", "0.0.5.0": "5", **{f"0.0.2.{n}": "2" for n in range(3)}}
    racks |= {f"0.0.{row}.{n}": f"{row}-{n // 2}" for row in (3, 4) for n in range(4)}
    for name, rack in racks.items():
        pin = PIN_DGX2 if rack == "3-0" else ""
        found.append(NodeSpec(name, dgx2, DGX2, rack=rack, labels=(("pin", pin),)))
    found += [NodeSpec(f"0.1.0.{n}", dgx2, IB, rack="ib", labels=(("pin", PIN_IB),)) for n in range(2)]
    return found


class Design(Bench):
    """The design example, or the machines of it that a test suggests."""

    def __init__(self, only: Iterable[str] = (), own: dict[str, dict[str, float]] | None = None, **vc2: object) -> None:
        super().__init__()
        for name, amounts in (own or OWN).items():
            quota = {f"devices/{kind}": amount for kind, amount in amounts.items()}
            never = {resource: 0.0 for resource, amount in quota.items() if not amount}
            more = vc2 if name == "VC2" else {}
            self.tell(TenantChanged(TenantSpec(name, None, quota, never, **more)))  # type: ignore[arg-type]
        wanted = set(only)
        for node in machines():
            if not wanted or node.name in wanted:
                self.tell(NodeJoined(node))

    def group(self, number: int) -> None:
        """Submits a group and lets the scheduler decide; nobody has left yet who must."""
        self.submit(request(number))
        self.step()

    def where(self, number: int) -> list[tuple[str, tuple[int, ...]]]:
        """Machine and devices of each pod, in the order of the pods."""
        placement = self.job(f"group{number}").placement
        if placement is None:
            return []
        return [(p.node, tuple(sorted(p.device_ids))) for pods in placement.roles.values() for p in pods]
