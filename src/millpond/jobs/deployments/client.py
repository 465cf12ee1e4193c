"""Deployments of this machine, for programs on it.

Writes wishes to the store; the keeper of each deployment, a job, makes them so. Knows nothing about terminals and HTTP.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import socket
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from millpond.api.deployment import DeploymentNotFoundError, DeploymentSpec, DeploymentStatus, ServerStatus
from millpond.api.job import CleanPolicy, JobSpec, Resources, RestartPolicy, RoleSpec, SpecError
from millpond.base.errors import MillpondError
from millpond.jobs.client import JobsClient
from millpond.jobs.deployments import wish as wishes
from millpond.jobs.deployments.report import seen
from millpond.jobs.deployments.store import DeploymentStore
from millpond.jobs.deployments.verbs import DeploymentVerbs, Edit
from millpond.jobs.deployments.wish import UID_LABEL, Wish
from millpond.jobs.service import JobsPlace, ensure_controller
from millpond.jobs.store import EventRecord

_LOOK_EVERY_S = 0.1
_GATEWAY_TTL_S = 1.0


class DeploymentsClient(DeploymentVerbs):
    """Deployments of one jobs directory.

    Args:
        root: The jobs directory.
        environment: What replicas inherit.
        working_dir: Where their commands run.
    """

    def __init__(self, root: Path, environment: dict[str, str] | None = None, working_dir: str = "") -> None:
        self._root = root
        self._environment = environment or {}
        self._working_dir = working_dir
        self._jobs = JobsClient(root, self._environment, working_dir)
        self._store = DeploymentStore(JobsPlace(root).jobs_database)

    def close(self) -> None:
        """Closes the stores."""
        self._store.close()
        self._jobs.close()

    def revive(self) -> None:
        """Starts gateways that are gone, and the controller that keeps them."""
        for wish, _ in self._store.all():
            if not self._is_kept(wish):
                self._keep(wish)
        self._jobs.revive()

    def create(self, spec: DeploymentSpec) -> DeploymentStatus:
        """Makes a deployment.

        Raises:
            DeploymentExistsError: There is one of that name.
        """
        _check_library()
        _check_commands(spec)
        gateway = dataclasses.replace(spec.gateway, port=_free_port(spec.gateway.host, spec.gateway.port))
        wanted = dataclasses.replace(spec, gateway=gateway)
        wish = wishes.make_wish(wanted, uuid.uuid4().hex, time.time(), self._working_dir, self._environment)
        ensure_controller(JobsPlace(self._root))  # without a controller nothing is created
        self._store.add([wish])
        self._keep(wish)
        return self._status(wish)

    def deployments(self, namespace: str | None = None) -> list[DeploymentStatus]:
        """Deployments, newest first."""
        now_s = time.time()
        return [seen(wish, said, now_s) for wish, said in self._store.all(namespace)]

    def events(self, status: DeploymentStatus) -> list[EventRecord]:
        """What happened to a deployment, oldest first."""
        return self._jobs.events_of(status.uid)

    def logs(self, replica: ServerStatus, *, follow: bool = False, tail: int | None = None) -> Iterator[bytes]:
        """What a replica wrote, in pieces."""
        job = self._jobs.get(replica.uid)
        return self._jobs.logs(job, job.replicas[0], follow=follow, tail=tail)

    def gateway_logs(self, name: str, namespace: str | None = None, *, tail: int | None = None) -> Iterator[bytes]:
        """What the gateway wrote, in pieces."""
        job = self._jobs.get(self._find(name, namespace).gateway_job)
        return self._jobs.logs(job, job.replicas[0], tail=tail)

    def delete(self, names: Sequence[str], namespace: str | None = None, wait_s: float = 90.0) -> list[bool]:
        """Deletes deployments once their replicas have finished what they have, and waits for that.

        Returns:
            For each, whether it is gone.

        Raises:
            DeploymentNotFoundError: One of them is not there; then none is deleted.
        """
        found = [self._find(name, namespace) for name in names]
        for wish in found:
            self._store.change(wish.uid, _give_up)
            if not self._is_kept(wish):
                self._keep(wish)
        deadline = time.monotonic() + wait_s
        while any(self._store.has(wish.uid) for wish in found) and time.monotonic() < deadline:
            time.sleep(_LOOK_EVERY_S / 2)
        return [not self._store.has(wish.uid) for wish in found]

    def _wishes(self, name: str | None, namespace: str | None) -> list[Wish]:
        found = self._store.all(namespace) if name is None else self._store.find(name, namespace)
        return [wish for wish, _ in found]

    def _change(self, wish: Wish, edit: Edit) -> DeploymentStatus:
        def checked(now: Wish) -> Wish:
            if now.is_deleting:
                raise DeploymentNotFoundError(f"'{now.spec.name}' is being deleted.", param="name")
            edited = edit(now)
            _check_commands(edited.spec)
            return edited

        changed = self._store.change(wish.uid, checked)
        if not self._is_kept(changed):
            self._keep(changed)
        return self._status(changed)

    def _status(self, wish: Wish) -> DeploymentStatus:
        now, said = self._store.find(wish.uid)[0]
        return seen(now, said, time.time())

    def _is_kept(self, wish: Wish) -> bool:
        job = self._store.jobs([wish.gateway_job]).get(wish.gateway_job) if wish.gateway_job else None
        return job is not None and not job[0].is_final and not job[0].is_deleting

    def _keep(self, wish: Wish) -> None:
        """Submits the job that keeps a deployment."""
        command = (sys.executable, "-m", "millpond.jobs.deployments.keeper", str(self._root), wish.uid)
        role = RoleSpec(
            name="Gateway", command=command, working_dir="/", resources=Resources(cpus=0.0),
            restart=RestartPolicy.ON_FAILURE, after=(), port=wish.spec.gateway.port,
        )  # fmt: skip
        spec = JobSpec(
            name=f"{wish.spec.name}-gateway-{os.urandom(2).hex()}",
            framework="serving",
            roles=(role,),
            namespace=wish.spec.namespace,
            tenant=wish.spec.tenant,
            preemptible=False,
            clean_policy=CleanPolicy.ALL,
            ttl_s=_GATEWAY_TTL_S,
            labels={UID_LABEL: wish.uid},
        )
        (status,) = self._jobs.submit_specs([spec])
        self._store.change(wish.uid, lambda now: dataclasses.replace(now, gateway_job=status.uid))


def _check_commands(spec: DeploymentSpec) -> None:
    """Processes of this machine have no image that would say what to start."""
    for version in spec.versions:
        if not version.template.role.command:
            raise SpecError(
                f"versions.{version.name}.run: is missing.",
                fix="Only a cluster with containers runs an image's own command.",
                param=f"versions.{version.name}.run",
            )


def _give_up(wish: Wish) -> Wish:
    return dataclasses.replace(wish, is_deleting=True, generation=wish.generation + 1, cause="deleted")


def _free_port(host: str, port: int) -> int:
    """The port, checked to be free now; 0 becomes one that is."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host, port), family=family) as listener:
            return int(listener.getsockname()[1])
    except OSError as error:
        raise MillpondError(
            f"Port {port} on {host} cannot be bound: {error.strerror or error}.",
            fix="Stop what uses it, or give another (0 picks a free one).",
            param="port",
        ) from None


def _check_library() -> None:
    if importlib.util.find_spec("aiohttp") is None:
        raise MillpondError("Deployments need aiohttp.", fix="Install it: pip install 'millpond[deploy]'.")
