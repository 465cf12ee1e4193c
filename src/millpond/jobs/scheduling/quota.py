"""`QuotaTree`: tenants in a tree with guarantees, maxima, borrowing and reclaim, and what each of them holds.

Owns the numbers of the tenants. Knows nothing of cells, order or time. Usage counts at the tenant and at every tenant
above it. Without any tenant the tree allows everything: a host for one person needs none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from millpond.jobs.scheduling.cells import Cells, Grain
from millpond.jobs.scheduling.types import Quota, RoleRequest, Shortage, TenantSpec

Charge = dict[str, float]


def demand_of(roles: Iterable[RoleRequest]) -> Charge:
    """What roles ask for, by the names quotas use."""
    charge: Charge = {"devices": 0.0, "cpus": 0.0, "memory_bytes": 0.0}
    for role in roles:
        need = role.resources
        charge["devices"] += need.devices * role.replicas
        charge["cpus"] += need.cpus * role.replicas
        charge["memory_bytes"] += need.memory_bytes * role.replicas
        if need.device_type is not None and need.devices:
            key = f"devices/{need.device_type}"
            charge[key] = charge.get(key, 0.0) + need.devices * role.replicas
    return charge


def charge_of(cells: Cells, grains: Iterable[Grain]) -> Charge:
    """What is really taken: a job that takes any type of device is charged for the type it got."""
    charge: Charge = {"devices": 0.0, "cpus": 0.0, "memory_bytes": 0.0}
    for grain in grains:
        count = grain.mask.bit_count()
        charge["devices"] += count
        charge["cpus"] += grain.cpu_milli / 1000
        charge["memory_bytes"] += grain.memory_bytes
        device_type = cells.nodes[grain.node].spec.device_type
        if count and device_type is not None:
            key = f"devices/{device_type}"
            charge[key] = charge.get(key, 0.0) + count
    return charge


class QuotaTree:
    """The tenants and what they hold."""

    def __init__(self) -> None:
        self.tenants: dict[str, TenantSpec] = {}
        self.usage: dict[str, Charge] = {}
        self.capacity: Charge = {}
        self.versions: dict[str, int] = {}  # of each tenant, grows with every change of what is held there or below
        self.tree_version = 0
        self._paths: dict[str, list[TenantSpec]] = {}

    def change(self, tenant: TenantSpec) -> None:
        """Adds a tenant or replaces its numbers."""
        self.tenants[tenant.name] = tenant
        self.usage.setdefault(tenant.name, {})
        self.tree_changed()

    def remove(self, name: str) -> None:
        """Removes a tenant; what its jobs hold is still counted above it."""
        self.tenants.pop(name, None)
        self.tree_changed()

    def tree_changed(self) -> None:
        """Forgets what was computed of the tree; also called when the cluster's capacity changes."""
        self.tree_version += 1
        self._paths.clear()

    def path(self, name: str) -> list[TenantSpec]:
        """The tenant and those above it, nearest first. A cycle ends the path."""
        known = self._paths.get(name)
        if known is not None:
            return known
        path: list[TenantSpec] = []
        at: str | None = name
        while at is not None and at in self.tenants and all(at != seen.name for seen in path):
            path.append(self.tenants[at])
            at = self.tenants[at].parent
        self._paths[name] = path
        return path

    def version_of(self, name: str) -> int:
        """Grows whenever the tenant, or one above it, holds something else: what its turn depends on."""
        version = 0
        for tenant in self.path(name):
            version += self.versions.get(tenant.name, 0)
        return version

    def add(self, name: str, charge: Mapping[str, float], sign: float = 1.0) -> tuple[str, ...]:
        """Counts a charge at the tenant and above. Returns the names, to give it back there later."""
        names = tuple(tenant.name for tenant in self.path(name)) or (name,)
        self.add_at(names, charge, sign)
        return names

    def add_at(self, names: Iterable[str], charge: Mapping[str, float], sign: float = 1.0) -> None:
        """Counts a charge at exactly these tenants."""
        for name in names:
            self.versions[name] = self.versions.get(name, 0) + 1
            usage = self.usage.setdefault(name, {})
            for resource, amount in charge.items():
                usage[resource] = usage.get(resource, 0.0) + sign * amount

    def shortage(self, name: str, charge: Mapping[str, float]) -> Shortage | None:
        """Why the tenant may not hold this much more now; None when it may."""
        if not self.tenants:
            return None
        path = self.path(name)
        if not path:
            return Shortage("quota", name, 0, 0, f"There is no tenant {name}.")
        for tenant in path:
            lacking = self._over(tenant, charge)
            if lacking is not None:
                return lacking
        return self._lending(path, charge)

    def fitting(self, charges: Iterable[tuple[str, Mapping[str, float]]]) -> list[bool]:
        """Which of these could all be held together if nobody held anything else, the first ones first."""
        usage, self.usage = self.usage, {name: {} for name in self.usage}
        answer = []
        for name, charge in charges:
            answer.append(self.shortage(name, charge) is None)
            if answer[-1]:
                self.add(name, charge)
        self.usage = usage
        return answer

    def may_take(self, name: str) -> Callable[[str, int], bool]:
        """Returns whether the tenant may hold so many more devices of a type."""

        def may_take(device_type: str, count: int) -> bool:
            if not device_type or not self.tenants:
                return True
            return self.shortage(name, {f"devices/{device_type}": float(count)}) is None

        return may_take

    def is_hopeless(self, name: str, charge: Mapping[str, float]) -> bool:
        """Whether the tenant could not hold this even if nobody held anything."""
        for tenant in self.path(name):
            limits = [tenant.maximum] if tenant.can_borrow else [tenant.maximum, tenant.guaranteed]
            if any(amount > limit[r] + 1e-9 for limit in limits for r, amount in charge.items() if r in limit):
                return True
        return False

    def within_guarantee(self, name: str, charge: Mapping[str, float]) -> bool:
        """Whether the tenant, or one above it, would still be inside its guarantee."""
        return bool(self.entitled(name, charge))

    def entitled(self, name: str, charge: Mapping[str, float]) -> list[str]:
        """The tenants on the path whose guarantee covers what they hold and this charge."""
        covering = []
        for tenant in self.path(name):
            named = [r for r, amount in charge.items() if amount > 0 and r in tenant.guaranteed]
            usage = self.usage[tenant.name]
            main = any(r.startswith("devices") for r in named) or (not charge.get("devices") and bool(named))
            if main and all(usage.get(r, 0.0) + charge[r] <= tenant.guaranteed[r] + 1e-9 for r in named):
                covering.append(tenant.name)
        return covering

    def lender(self, owner: str, entitled: Iterable[str], borrower: str) -> bool:
        """Whether `borrower` sits on what `owner` may take back: its side of the tree is over its guarantee."""
        mine = [tenant.name for tenant in self.path(owner)]
        theirs = self.path(borrower)
        outside = [tenant for tenant in theirs if tenant.name not in mine]
        inside = {tenant.name for tenant in theirs}
        if not outside:
            return not theirs  # an unknown tenant has no guarantee
        return any(name not in inside for name in entitled) and self.is_borrowing(outside[-1])

    def is_borrowing(self, tenant: TenantSpec) -> bool:
        """Whether a tenant holds more devices (or, without devices, CPUs) than guaranteed."""
        usage = self.usage[tenant.name]
        named = [r for r in tenant.guaranteed if r.startswith("devices")]
        if not named:
            return usage.get("devices", 0.0) > 0 or usage.get("cpus", 0.0) > tenant.guaranteed.get("cpus", 0.0)
        return any(usage.get(r, 0.0) > tenant.guaranteed[r] + 1e-9 for r in named)

    def shares(self, name: str) -> tuple[float, ...]:
        """Dominant share over weight, from the root down: the smaller, the sooner its turn."""
        answer = []
        for tenant in reversed(self.path(name)):
            usage = self.usage[tenant.name]
            dominant = max((usage.get(r, 0.0) / total for r, total in self.capacity.items() if total > 0), default=0.0)
            answer.append(dominant / tenant.weight if tenant.weight > 0 else float("inf"))
        return tuple(answer)

    def _over(self, tenant: TenantSpec, charge: Mapping[str, float]) -> Shortage | None:
        usage = self.usage[tenant.name]
        rules: list[tuple[Quota, str]] = [(tenant.maximum, "its maximum")]
        if not tenant.can_borrow:
            rules.append((tenant.guaranteed, "its guarantee, and it may not borrow"))
        for limits, rule in rules:
            for resource, amount in charge.items():
                used = usage.get(resource, 0.0)
                if amount > 0 and resource in limits and used + amount > limits[resource] + 1e-9:
                    free = max(limits[resource] - used, 0.0)
                    detail = (
                        f"Tenant {tenant.name} holds {used:g} of {limits[resource]:g} {resource} ({rule}); "
                        f"the job needs {amount:g}."
                    )
                    return Shortage("quota", tenant.name, amount, free, detail)
        return None

    def _lending(self, path: list[TenantSpec], charge: Mapping[str, float]) -> Shortage | None:
        """Capacity that tenants who do not lend keep for themselves is not there for others."""
        mine = {tenant.name for tenant in path}
        keepers = [t for t in self.tenants.values() if not t.can_lend and t.name not in mine]
        if not keepers:
            return None
        roots = {tenant.name for tenant in self.tenants.values() if tenant.parent not in self.tenants}
        for resource, amount in charge.items():
            total = self.capacity.get(resource, 0.0)
            used = sum(self.usage[root].get(resource, 0.0) for root in roots)
            unused = (t.guaranteed.get(resource, 0.0) - self.usage[t.name].get(resource, 0.0) for t in keepers)
            kept = sum(max(amount, 0.0) for amount in unused)
            if amount > 0 and kept > 0 and used + amount > total - kept + 1e-9:
                free = max(total - kept - used, 0.0)
                names = ", ".join(t.name for t in keepers)
                return Shortage("quota", path[0].name, amount, free, f"{kept:g} {resource} are kept for {names}.")
        return None
