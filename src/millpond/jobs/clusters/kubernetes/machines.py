"""Which machines the scheduler may use: nodes, what their agents post about them, and when one counts as lost.

Owns the comparison between what the API server says and what the scheduler was told. Owned by the operator.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from millpond.base.errors import MillpondError
from millpond.jobs.clusters.kubernetes.client import KubernetesApi
from millpond.jobs.clusters.kubernetes.cluster import KubernetesCluster
from millpond.jobs.clusters.kubernetes.kinds import NODES, TOPOLOGIES, Object
from millpond.jobs.clusters.kubernetes.nodes import is_usable, read_node, unready_since_s
from millpond.jobs.clusters.kubernetes.pods import TRACKED
from millpond.jobs.clusters.kubernetes.reflector import Reflector
from millpond.jobs.scheduling.cells import is_same_machine
from millpond.jobs.scheduling.types import NodeCordoned, NodeJoined, NodeLost, NodeSpec
from millpond.jobs.state import JobState

if TYPE_CHECKING:
    from millpond.jobs.clusters.kubernetes.operator import OperatorSettings

NodeEvent = NodeJoined | NodeLost | NodeCordoned
_log = logging.getLogger(__name__)


class Machines:
    """Nodes as the scheduler knows them."""

    def __init__(
        self, api: KubernetesApi, settings: OperatorSettings, cluster: KubernetesCluster, clock: Callable[[], float]
    ) -> None:
        self._settings = settings
        self._cluster = cluster
        self._clock = clock
        self._cordoned: set[str] = set()
        self._refused: dict[str, str] = {}
        self._nodes = Reflector(api, NODES, self._changed)
        self._topologies = Reflector(api, TOPOLOGIES, self._changed)
        self.reflectors = (self._nodes, self._topologies)

    def start(self) -> None:
        """Tells the cluster its machines, before the controller asks for them."""
        now_s = self._clock()
        for name, node in self._wanted().items():
            spec, lost_s = self._read(node), self._lost_at(node)
            if lost_s is not None and now_s >= lost_s:
                self._cluster.lost_nodes.add(name)
            elif spec is not None:
                self._cluster.machines[name] = spec
        held = {pod["spec"].get("nodeName", "") for pod in self._cluster.pods.objects.values()} - {""}
        self._cluster.lost_nodes |= held - set(self._nodes_by_name())

    def take_events(self, jobs: Mapping[str, JobState]) -> list[NodeEvent]:
        """What changed about the machines."""
        now_s = self._clock()
        wanted = self._wanted()
        events: list[NodeEvent] = []
        for name in set(self._cluster.machines) - set(wanted):
            events.append(self._lose(name, is_gone=name not in self._nodes_by_name()))
        for name, node in wanted.items():
            lost_s = self._lost_at(node)
            if lost_s is not None and now_s >= lost_s:
                events += [self._lose(name, is_gone=True)] if name in self._cluster.machines else []
                continue
            events += self._take(name, node)
        return events

    def next_time(self) -> float | None:
        """When a silent machine will count as lost."""
        wanted = self._wanted()
        times = [self._lost_at(wanted[name]) for name in self._cluster.machines if name in wanted]
        return min((at_s for at_s in times if at_s is not None), default=None)

    def _take(self, name: str, node: Object) -> list[NodeEvent]:
        spec = self._read(node)
        events: list[NodeEvent] = []
        known = self._cluster.machines.get(name)
        if spec is not None and known is not None and known != spec and not is_same_machine(known, spec):
            events.append(self._lose(name, is_gone=False))
            known = None
        # A machine that comes (back) as another one is empty to the scheduler, so it must be empty.
        if spec is not None and known != spec and (known is not None or not self._has_live_pods(name)):
            self._cluster.machines[name] = spec
            self._cluster.lost_nodes.discard(name)
            events.append(NodeJoined(spec))
        if name not in self._cluster.machines:
            return events
        is_cordoned = not is_usable(node)
        if is_cordoned != (name in self._cordoned):
            self._cordoned ^= {name}
            events.append(NodeCordoned(name, is_cordoned))
        return events

    def _lose(self, name: str, *, is_gone: bool) -> NodeLost:
        """`is_gone`: with every process on it; otherwise it is only no longer ours to use."""
        del self._cluster.machines[name]
        self._cordoned.discard(name)
        if is_gone:
            self._cluster.lost_nodes.add(name)
        return NodeLost(name)

    def _read(self, node: Object) -> NodeSpec | None:
        name = node["metadata"]["name"]
        topology = self._topologies.objects.get(("", name))
        try:
            spec = read_node(node, topology, self._settings.reserved_cpus, self._settings.reserved_bytes)
        except MillpondError as error:
            if self._refused.get(name) != str(error):
                _log.warning("Node %s is not used: %s", name, error)
            self._refused[name] = str(error)
            return None
        self._refused.pop(name, None)
        return spec

    def _has_live_pods(self, name: str) -> bool:
        return any(
            pod["spec"].get("nodeName") == name and TRACKED in (pod["metadata"].get("finalizers") or ())
            for pod in self._cluster.pods.objects.values()
        )

    def _wanted(self) -> dict[str, Object]:
        if self._settings.gang_scheduler:
            return {}
        selector = dict(self._settings.node_selector)
        return {
            name: node
            for name, node in self._nodes_by_name().items()
            if selector.items() <= (node["metadata"].get("labels") or {}).items()
        }

    def _nodes_by_name(self) -> dict[str, Object]:
        return {name: node for (_, name), node in self._nodes.objects.items()}

    def _lost_at(self, node: Object) -> float | None:
        since_s = unready_since_s(node)
        return None if since_s is None else since_s + self._settings.node_lost_s

    def _changed(self, old: Object | None, new: Object | None) -> None:
        if old is None or new is None or _is_news(old, new):
            self._cluster.changed.set()


def _is_news(old: Object, new: Object) -> bool:
    """Kubelets write a heartbeat every few seconds; that alone is none."""
    def shown(node: Object) -> tuple[object, ...]:
        status = node.get("status") or {}
        ready = [one.get("status") for one in status.get("conditions") or () if one.get("type") == "Ready"]
        return node.get("spec"), node["metadata"].get("labels"), status.get("allocatable"), ready

    return shown(old) != shown(new)
