"""Another number of replicas for a job that lives. Pure; called by the transitions and by who takes the wish in.

A job is resized whole: it leaves its place, and starts again in one of the new size, from its last checkpoint. So the
processes of one start always agree about how many they are.
"""

from __future__ import annotations

import dataclasses

from millpond.api.job import JobNotFoundError, JobSpec, RoleSpec, SpecError
from millpond.jobs.frameworks import FRAMEWORKS
from millpond.jobs.spec_parts import MAX_REPLICAS
from millpond.jobs.state import JobState, ReplicaState


def ask_size(state: JobState, role: str, replicas: int) -> str:
    """Notes the size that is asked for. Returns the reason for people; empty when nothing would change."""
    asked = state.spec.role(role)
    if state.is_final or state.is_deleting or state.cron is not None or asked is None:
        return ""
    if replicas == state.resize.get(role, asked.replicas):
        return ""
    state.resize[role] = replicas
    return f"{role} goes from {asked.replicas} to {replicas} replicas."


def take_size(state: JobState) -> None:
    """Gives the job, of which no process is left, the size that was asked for."""
    roles = tuple(
        dataclasses.replace(role, replicas=state.resize.get(role.name, role.replicas)) for role in state.spec.roles
    )
    state.spec, state.resize = dataclasses.replace(state.spec, roles=roles), {}
    # A replica that comes again must not come with an attempt that was started before.
    state.spent_attempts = max([state.spent_attempts, *(replica.attempt for replica in state.replicas)])
    state.replicas = [
        state.replica(role.name, index) or ReplicaState(role.name, index, attempt=state.spent_attempts)
        for role in roles
        for index in range(role.replicas)
    ]


def elastic_role(spec: JobSpec, name: str | None) -> RoleSpec:
    """The role that is scaled: the one called so, or the workers.

    Raises:
        JobNotFoundError: The job has no such role, or it must have one replica.
    """
    chiefs = FRAMEWORKS[spec.framework].chiefs
    able = [role for role in spec.roles if role.name not in chiefs]
    found = [role for role in able if role.name.casefold() == (name or "worker").casefold()]
    if not found and name is None:
        found = able[-1:]
    if not found:
        known = ", ".join(role.name for role in able) or "none"
        what = f"role '{name}'" if name else "role"
        raise JobNotFoundError(f"'{spec.name}' has no {what} that can be scaled.", fix=f"There are: {known}.")
    return found[0]


def check_size(spec: JobSpec, name: str | None, replicas: int) -> RoleSpec:
    """The role that is scaled, if it can have so many.

    Raises:
        JobNotFoundError: The job has no such role, or it must have one replica.
        SpecError: The role cannot have so many.
    """
    role = elastic_role(spec, name)
    low, high = role.min_replicas or 1, role.max_replicas or MAX_REPLICAS
    if not low <= replicas <= high:
        problem = f"{role.name} of '{spec.name}' can have {low} to {high} replicas, not {replicas}."
        raise SpecError(problem, param="replicas")
    return role


def changed_sizes(old: JobSpec, new: JobSpec) -> dict[str, int] | None:
    """The roles that `new` wants in another size; None when it also differs in something that cannot change."""
    sizes, before = ({role.name: role.replicas for role in spec.roles} for spec in (new, old))
    roles = tuple(dataclasses.replace(role, replicas=sizes.get(role.name, role.replicas)) for role in old.roles)
    # Labels, annotations and notes are left out: nothing is made of them.
    old = dataclasses.replace(old, roles=roles, labels=new.labels, annotations=new.annotations, notes=new.notes)
    if old != new:
        return None
    return {name: replicas for name, replicas in sizes.items() if replicas != before[name]}
