"""In which order the roles of a reserved job are released.

Owns the start edges. A role is released when every role it waits for has come far enough; one that the job does not
have, or that has no replicas, counts as there. Knows nothing of cells: the reservation is held all along.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from millpond.base.errors import RequestError
from millpond.jobs.scheduling.types import GangRequest, Phase

_ORDER = {Phase.CREATED: 0, Phase.RUNNING: 1, Phase.SUCCEEDED: 2}


def releasable(request: GangRequest, released: Collection[str], phases: Mapping[str, Phase]) -> list[str]:
    """Returns the roles that may start now and have not been released."""
    sizes = {role.name: role.replicas for role in request.roles}
    answer = []
    for role in request.roles:
        if role.name not in released and all(
            not sizes.get(edge.role) or is_past(phases.get(edge.role), edge.phase) for edge in role.after
        ):
            answer.append(role.name)
    return answer


def is_past(phase: Phase | None, wanted: Phase) -> bool:
    """Whether a role has come at least this far."""
    return phase is not None and _ORDER[phase] >= _ORDER[wanted]


def check_request(request: GangRequest) -> None:
    """Raises for a request that no scheduler could ever start.

    Raises:
        RequestError: Names the field at fault.
    """
    names = [role.name for role in request.roles]
    if not names:
        raise RequestError("A job needs at least one role.", param="roles")
    if len(set(names)) < len(names):
        raise RequestError("Two roles have the same name.", param="roles")
    for role in request.roles:
        _check_role(role.name, role.replicas, role.min_replicas)
        need = role.resources
        if need.devices < 0 or need.cpus < 0 or need.memory_bytes < 0:
            raise RequestError("Resources cannot be negative.", param=f"roles.{role.name}.resources")
    if request.aggregation is not None:
        target = next((role for role in request.roles if role.name == request.aggregation.role), None)
        if target is None or target.resources.devices != 1:
            raise RequestError(
                "Aggregation needs a role whose replicas take one device each.",
                param="aggregation.role",
                fix="Ask for N replicas of one device.",
            )
    phases: dict[str, Phase] = {}
    while ready := releasable(request, phases, phases):
        phases.update((name, Phase.SUCCEEDED) for name in ready)
    stuck = [name for name in names if name not in phases]
    if stuck:
        raise RequestError(
            f"The start order has a cycle through {', '.join(stuck)}.", param="roles.after", fix="Take one edge out."
        )


def _check_role(name: str, replicas: int, least: int | None) -> None:
    if replicas < 0:
        raise RequestError("Replicas cannot be negative.", param=f"roles.{name}.replicas")
    if least is not None and not 0 < least <= replicas:
        raise RequestError("min_replicas must lie between 1 and replicas.", param=f"roles.{name}.min_replicas")
