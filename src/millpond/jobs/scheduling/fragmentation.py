"""Where to put a task that takes a part of a device so that the rest stays useful.

Owns the measure of fragmentation of FGD (USENIX ATC'23): the device capacity of a node that a typical task cannot use,
weighted by how often such tasks come; a task goes where that grows least. To it we add the balance of CPUs and
devices: FGD looks one task ahead and fills nodes until their CPUs no longer feed their devices. Works on arrays over
all nodes. Knows nothing of gangs, wiring or time: it is for crowds of independent tasks with shares of devices, and
`bench.jobs.openb` replays one. Equal growth is settled by the tighter fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

WHOLE = 1000  # thousandths of a device
# How much a device that its node's CPUs can no longer feed counts, against one that is too small for a typical task.
# FGD is 0. On the openb trace 0.3 to 3 differ by 0.1 points of allocation, and 0 is 1.3 points below them.
_BALANCE = 3.0


@dataclass(frozen=True, slots=True)
class TaskClass:
    """Equal tasks: `devices` whole ones, or one share of `milli`. `models` is a mask of device models; 0 takes any."""

    cpu_milli: int
    memory_mib: int
    devices: int
    milli: int
    models: int = 0


@dataclass(frozen=True, slots=True)
class DeviceNode:
    """A node of the crowd's cluster."""

    cpu_milli: int
    memory_mib: int
    devices: int
    model: int = 0


class FractionalCluster:
    """Free shares of devices on every node, and the fragmentation they mean for typical tasks.

    Args:
        nodes: The nodes, all of them free.
        classes: The classes that tasks will be of.
        weights: How often each class comes; they need not add up to one.
    """

    def __init__(self, nodes: Sequence[DeviceNode], classes: Sequence[TaskClass], weights: Sequence[float]) -> None:
        most = max((node.devices for node in nodes), default=0)
        self.cpu: Ints = np.array([node.cpu_milli for node in nodes], dtype=np.int64)  # [N]
        self.memory: Ints = np.array([node.memory_mib for node in nodes], dtype=np.int64)  # [N]
        self._model: Ints = np.array([1 << node.model for node in nodes], dtype=np.int64)  # [N]
        self.free: Ints = np.zeros((len(nodes), max(most, 1)), dtype=np.int64)  # [N, most devices], sorted downwards
        for index, node in enumerate(nodes):
            self.free[index, : node.devices] = WHOLE
        self._classes = classes
        self._changed: Ints = np.zeros(len(nodes), dtype=np.int64)  # [N] turn of the last change
        self._turn = 1
        self._growth: Floats = np.full((len(classes), len(nodes)), np.inf)  # [classes, N]
        self._slot: Ints = np.zeros((len(classes), len(nodes)), dtype=np.int64)  # [classes, N]
        self._seen: Ints = np.full(len(classes), -1, dtype=np.int64)
        self._make_typical(classes, weights)

    def _make_typical(self, classes: Sequence[TaskClass], weights: Sequence[float]) -> None:
        typical = [(item, weight) for item, weight in zip(classes, weights, strict=True) if item.devices and weight > 0]
        total = sum(weight for _, weight in typical) or 1.0
        self._weight: Floats = np.array([weight / total for _, weight in typical])
        self._need_cpu: Ints = np.array([item.cpu_milli for item, _ in typical], dtype=np.int64)
        self._need_models: Ints = np.array([item.models or -1 for item, _ in typical], dtype=np.int64)
        devices = sum(item.devices * item.milli * weight for item, weight in typical) or 1.0
        cpus = sum(item.cpu_milli * weight for item, weight in typical)
        self._cpus_per_device = max(cpus / devices, 1e-9)
        sizes = sorted({self._size(item) for item, _ in typical})
        self._shares: Ints = np.array([size for size in sizes if size < WHOLE], dtype=np.int64)
        self._wholes: Ints = np.array([size // WHOLE for size in sizes if size >= WHOLE], dtype=np.int64)
        self._column: Ints = np.array([sizes.index(self._size(item)) for item, _ in typical], dtype=np.int64)

    def put(self, kind: int) -> int | None:
        """Places one task of a class; returns the node, or None when no node has room."""
        task = self._classes[kind]
        self._refresh(kind)
        growth = self._growth[kind]
        node = int(np.argmin(growth)) if len(growth) else -1
        if node < 0 or not np.isfinite(growth[node]):
            return None
        self.cpu[node] -= task.cpu_milli
        self.memory[node] -= task.memory_mib
        if task.devices == 1:
            self.free[node, self._slot[kind, node]] -= task.milli
        else:
            self.free[node, : task.devices] = 0
        self.free[node] = -np.sort(-self.free[node])
        self._turn += 1
        self._changed[node] = self._turn
        return node

    def fragmentation(self) -> float:
        """Device thousandths that typical tasks cannot use, expected over the classes."""
        every = np.arange(len(self.cpu))
        usable = self._usable(self.free, self.cpu, self._model[every])
        return float(self.free.sum() - usable.sum())

    @staticmethod
    def _size(task: TaskClass) -> int:
        return task.milli if task.devices == 1 else task.devices * WHOLE

    def _refresh(self, kind: int) -> None:
        """Computes anew what a task of the class costs on the nodes that changed since it was last asked."""
        stale = np.flatnonzero(self._changed > self._seen[kind])
        self._seen[kind] = self._turn
        task = self._classes[kind]
        self._growth[kind, stale] = np.inf
        room = (self.cpu[stale] >= task.cpu_milli) & (self.memory[stale] >= task.memory_mib)
        if task.models:
            room &= (self._model[stale] & task.models) != 0
        nodes = stale[room]
        if task.devices == 0:
            # Leave nodes with free devices alone: they need their CPUs.
            spare = self.cpu[nodes] - task.cpu_milli
            before = self._worth(self.free[nodes], self.cpu[nodes], self._model[nodes])
            after = self._worth(self.free[nodes], spare, self._model[nodes])
            self._growth[kind, nodes] = before - after + spare * 1e-9
        elif task.devices == 1:
            self._refresh_share(kind, task, nodes)
        else:
            nodes = nodes[(self.free[nodes] == WHOLE).sum(axis=1) >= task.devices]
            after_free = self.free[nodes].copy()
            after_free[:, : task.devices] = 0
            self._growth[kind, nodes] = self._change(task, nodes, after_free)

    def _refresh_share(self, kind: int, task: TaskClass, nodes: Ints) -> None:
        best: Floats = np.full(len(nodes), np.inf)
        slots: Ints = np.zeros(len(nodes), dtype=np.int64)
        for slot in range(self.free.shape[1]):
            free = self.free[nodes, slot]
            # Devices are sorted: of equal ones the last is enough.
            last = free != self.free[nodes, slot + 1] if slot + 1 < self.free.shape[1] else np.ones(len(nodes), bool)
            tried = np.flatnonzero((free >= task.milli) & last)
            if not len(tried):
                continue
            after_free = self.free[nodes[tried]].copy()
            after_free[:, slot] -= task.milli
            growth = self._change(task, nodes[tried], after_free) + after_free[:, slot] * 1e-6
            better = growth < best[tried]
            best[tried[better]] = growth[better]
            slots[tried[better]] = slot
        self._growth[kind, nodes] = best
        self._slot[kind, nodes] = slots

    def _change(self, task: TaskClass, nodes: Ints, after_free: Ints) -> Floats:
        """How much usable capacity goes beyond what the task takes; the tighter node wins among equals."""
        before = self._worth(self.free[nodes], self.cpu[nodes], self._model[nodes])
        after = self._worth(after_free, self.cpu[nodes] - task.cpu_milli, self._model[nodes])
        tight: Floats = after_free.sum(axis=1) * 1e-7 + (self.cpu[nodes] - task.cpu_milli) * 1e-10
        return before - after + tight

    def _usable(self, free: Ints, cpu: Ints, model: Ints) -> Floats:
        """Expected device thousandths that a typical task can use on each node: [K]."""
        enough = free[:, :, None] >= self._shares[None, None, :]
        by_share = (free[:, :, None] * enough).sum(axis=1)  # [K, shares]
        whole = (free >= WHOLE).sum(axis=1)  # [K]
        by_whole = np.where(whole[:, None] >= self._wholes[None, :], whole[:, None] * WHOLE, 0)
        table = np.concatenate([by_share, by_whole], axis=1)[:, self._column]  # [K, typical]
        fits = (cpu[:, None] >= self._need_cpu[None, :]) & ((model[:, None] & self._need_models[None, :]) != 0)
        answer: Floats = np.asarray((table * fits) @ self._weight, dtype=np.float64)
        return answer

    def _worth(self, free: Ints, cpu: Ints, model: Ints) -> Floats:
        """Usable capacity, and what the CPUs left over can still feed: devices without CPUs are lost as well."""
        fed: Floats = np.minimum(free.sum(axis=1), cpu / self._cpus_per_device)
        return self._usable(free, cpu, model) + _BALANCE * fed
