"""How the devices of a machine are wired: what a node agent reports and the scheduler of jobs reads.

Owns the description of one machine (links between devices, PCIe switches, sockets, network cards). Knows nothing of
which device is free, of rings or of costs: `millpond.jobs.scheduling.rings` computes those. All bandwidths are GB/s,
one direction, effective. Nodes of one kind share one `NodeWiring` object, so what is computed of it is computed once.
"""

from __future__ import annotations

from dataclasses import dataclass

from millpond.base.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Nic:
    """A network card and the PCIe switch it hangs on."""

    gbps: float
    pcie_switch: int = 0


@dataclass(frozen=True, slots=True)
class NodeWiring:
    """The wiring of one kind of machine.

    Attributes:
        kind: Name of the kind, such as `dgx-1v`; equal kinds have equal wiring.
        links: Direct links between two devices as `(low device, high device, number of links)`.
        link_gbps: Bandwidth of one direct link.
        switch_gbps: Bandwidth a device has into an all-to-all switch (NVSwitch); 0 when there is none.
        pcie_switch: The PCIe switch of each device; its length is the number of devices.
        socket: The CPU socket of each device.
        pcie_gbps: Bandwidth between devices below one PCIe switch or one socket.
        socket_gbps: Bandwidth between the sockets (QPI, UPI, xGMI).
        nics: Network cards used for collectives.
        hop_s: Latency of one hop inside the machine.
        network_hop_s: Latency of one hop over the network.
    """

    kind: str
    pcie_switch: tuple[int, ...] = ()
    socket: tuple[int, ...] = ()
    links: tuple[tuple[int, int, int], ...] = ()
    link_gbps: float = 0.0
    switch_gbps: float = 0.0
    pcie_gbps: float = 12.0
    socket_gbps: float = 8.0
    nics: tuple[Nic, ...] = (Nic(1.1),)
    hop_s: float = 5e-6
    network_hop_s: float = 14e-6

    def __post_init__(self) -> None:
        if len(self.socket) != len(self.pcie_switch):
            raise ConfigError(
                f"Wiring {self.kind} names {len(self.pcie_switch)} switches and {len(self.socket)} sockets.",
                fix="Name one PCIe switch and one socket for each device.",
            )
        for low, high, count in self.links:
            if not (0 <= low < high < self.num_devices and count > 0):
                raise ConfigError(
                    f"Wiring {self.kind} has a link {low}-{high} x{count} between devices it does not have.",
                    fix="Name the lower device first and count from 0.",
                )

    @property
    def num_devices(self) -> int:
        """How many devices the machine has."""
        return len(self.pcie_switch)

    @property
    def network_gbps(self) -> float:
        """Bandwidth of all network cards together."""
        return sum(nic.gbps for nic in self.nics)


def plain_wiring(num_devices: int, *, kind: str = "", nic_gbps: float = 1.1) -> NodeWiring:
    """Devices below one PCIe switch on one socket with one network card: what is assumed when nothing is known."""
    zeros = (0,) * num_devices
    return NodeWiring(kind or f"plain-{num_devices}", zeros, zeros, nics=(Nic(nic_gbps),))


def dgx1v_wiring() -> NodeWiring:
    """DGX-1 with V100: eight devices in a hybrid cube mesh, four EDR cards."""
    links = (
        (0, 1, 1), (0, 2, 1), (0, 3, 2), (0, 4, 2), (1, 2, 2), (1, 3, 1), (1, 5, 2), (2, 3, 2),
        (2, 6, 1), (3, 7, 1), (4, 5, 1), (4, 6, 1), (4, 7, 2), (5, 6, 2), (5, 7, 1), (6, 7, 2),
    )  # fmt: skip
    return NodeWiring(
        "dgx-1v",
        pcie_switch=(0, 0, 1, 1, 2, 2, 3, 3),
        socket=(0, 0, 0, 0, 1, 1, 1, 1),
        links=links,
        link_gbps=20.0,
        pcie_gbps=10.0,
        socket_gbps=6.0,
        nics=tuple(Nic(11.5, switch) for switch in range(4)),
    )


def nvswitch_wiring(num_devices: int = 8, *, kind: str = "dgx-a100", switch_gbps: float = 235.0) -> NodeWiring:
    """Devices behind an all-to-all switch, a card for each of them: DGX A100 by default."""
    return NodeWiring(
        kind,
        pcie_switch=tuple(device // 2 for device in range(num_devices)),
        socket=tuple(2 * device // num_devices for device in range(num_devices)),
        switch_gbps=switch_gbps,
        pcie_gbps=24.0,
        socket_gbps=16.0,
        nics=tuple(Nic(23.0, device // 2) for device in range(num_devices)),
    )
