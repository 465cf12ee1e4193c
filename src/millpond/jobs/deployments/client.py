"""The verbs of deployments, for programs on the same machine: apply, look, scale, split, roll back, delete.

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from millpond.api.deployment import (
    DeploymentExistsError,
    DeploymentNotFoundError,
    DeploymentSpec,
    DeploymentStatus,
    Revision,
    ServerStatus,
    VersionSpec,
)
from millpond.api.job import CleanPolicy, JobNotFoundError, JobSpec, Resources, RestartPolicy, RoleSpec
from millpond.base.errors import MillpondError
from millpond.base.suggest import did_you_mean
from millpond.jobs.client import JobsClient
from millpond.jobs.deployments import wish as wishes
from millpond.jobs.deployments.report import seen
from millpond.jobs.deployments.spec import load_deployments
from millpond.jobs.deployments.store import DeploymentStore
from millpond.jobs.deployments.wish import UID_LABEL, Wish
from millpond.jobs.looking import wait_until
from millpond.jobs.service import JobsPlace, ensure_controller
from millpond.jobs.store import EventRecord

_LOOK_EVERY_S = 0.1
_GATEWAY_TTL_S = 1.0


class DeploymentsClient:
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

    def apply(self, text: str) -> list[DeploymentStatus]:
        """Makes the deployments of a YAML text, or changes those that are there.

        Raises:
            SpecError: The text is wrong; then nothing is changed.
        """
        return [self.apply_spec(spec) for spec in load_deployments(text)]

    def apply_spec(self, spec: DeploymentSpec, cause: str = "applied") -> DeploymentStatus:
        """Makes a deployment, or changes the one of that name."""
        found = self._store.find(spec.name, spec.namespace)
        if not found:
            return self.create(spec)
        uid, now_s = found[0][0].uid, time.time()

        def edit(wish: Wish) -> Wish:
            gateway = spec.gateway
            if not gateway.port:  # not said: as it is
                old = wish.spec.gateway
                gateway = dataclasses.replace(gateway, host=old.host, port=old.port)
            wanted = dataclasses.replace(spec, gateway=gateway)
            return wish if wanted == wish.spec else wishes.change(wish, wanted, now_s, cause)

        return self._changed(uid, edit)

    def create(self, spec: DeploymentSpec) -> DeploymentStatus:
        """Makes a deployment.

        Raises:
            DeploymentExistsError: There is one of that name.
        """
        _check_library()
        gateway = dataclasses.replace(spec.gateway, port=_free_port(spec.gateway.host, spec.gateway.port))
        wanted = dataclasses.replace(spec, gateway=gateway)
        wish = wishes.make_wish(wanted, uuid.uuid4().hex, time.time(), self._working_dir, self._environment)
        ensure_controller(JobsPlace(self._root))  # without a controller nothing is created
        self._store.add([wish])
        self._keep(wish)
        return self._status(wish.uid)

    def add_version(self, spec: DeploymentSpec, *, replaces: bool = False) -> DeploymentStatus:
        """Adds the versions of `spec` to a deployment, or makes it.

        Raises:
            DeploymentExistsError: It has a version of that name, and `replaces` is not set.
        """
        found = self._store.find(spec.name, spec.namespace)
        if not found:
            return self.create(spec)
        now_s = time.time()

        def edit(wish: Wish) -> Wish:
            for version in spec.versions:
                if not replaces and wish.spec.version(version.name) is not None:
                    raise DeploymentExistsError(
                        f"'{spec.name}' has a version '{version.name}' already.",
                        fix="Update it, or give another --version.",
                        param="version",
                    )
            return wishes.add_versions(wish, spec, now_s)

        return self._changed(found[0][0].uid, edit)

    def update_version(
        self, name: str, version: str, edit: Callable[[VersionSpec], VersionSpec], namespace: str | None = None,
        cause: str = "updated",
    ) -> DeploymentStatus:  # fmt: skip
        """Changes one version."""
        now_s = time.time()
        return self._changed(
            self._find(name, namespace).uid,
            lambda wish: wishes.change_version(wish, version, edit, now_s, cause),
        )

    def scale(
        self, name: str, replicas: int, version: str | None = None, namespace: str | None = None
    ) -> DeploymentStatus:
        """Sets how many replicas a version has; an autoscaler goes on from there."""
        wish = self._find(name, namespace)
        target = wishes.need_version_name(wish.spec, version)
        return self.update_version(
            name, target, lambda spec: dataclasses.replace(spec, replicas=replicas), wish.spec.namespace,
            f"scaled {target} to {replicas}",
        )  # fmt: skip

    def split(self, name: str, weights: Mapping[str, int], namespace: str | None = None) -> DeploymentStatus:
        """Sets how versions share requests."""
        now_s = time.time()
        return self._changed(self._find(name, namespace).uid, lambda wish: wishes.split(wish, weights, now_s))

    def roll_back(
        self, name: str, revision: int | None = None, version: str | None = None, namespace: str | None = None
    ) -> DeploymentStatus:
        """Goes back to an earlier revision of a version."""
        wish, now_s = self._find(name, namespace), time.time()
        target = wishes.need_version_name(wish.spec, version)
        return self._changed(wish.uid, lambda now: wishes.roll_back(now, target, revision, now_s))

    def drop_version(self, name: str, version: str, namespace: str | None = None) -> DeploymentStatus:
        """Takes a version out of a deployment."""
        now_s = time.time()
        return self._changed(self._find(name, namespace).uid, lambda wish: wishes.drop_version(wish, version, now_s))

    def deployments(self, namespace: str | None = None) -> list[DeploymentStatus]:
        """Deployments, newest first."""
        now_s = time.time()
        return [seen(wish, said, now_s) for wish, said in self._store.all(namespace)]

    def get(self, name: str, namespace: str | None = None) -> DeploymentStatus:
        """A deployment by name or uid.

        Raises:
            DeploymentNotFoundError: There is none.
        """
        return self._status(self._find(name, namespace).uid)

    def spec(self, name: str, namespace: str | None = None) -> DeploymentSpec:
        """What was asked for."""
        return self._find(name, namespace).spec

    def cause(self, name: str) -> str:
        """What the last change was."""
        return self._find(name, None).cause

    def revisions(self, name: str, namespace: str | None = None) -> dict[str, tuple[Revision, ...]]:
        """The templates that each version had, oldest first."""
        return self._find(name, namespace).revisions

    def events(self, status: DeploymentStatus) -> list[EventRecord]:
        """What happened to a deployment, oldest first."""
        return self._jobs.events_of(status.uid)

    def wait(
        self, name: str, until: Callable[[DeploymentStatus], bool], timeout_s: float, namespace: str | None = None
    ) -> DeploymentStatus:
        """Waits until a deployment is as wanted, or the time is over; returns how it is then."""
        return wait_until(lambda: self.get(name, namespace), until, timeout_s, _LOOK_EVERY_S)

    def find_replica(self, status: DeploymentStatus, name: str | None) -> ServerStatus:
        """A replica by its name; without one the first.

        Raises:
            JobNotFoundError: There is none.
        """
        found = [replica for replica in status.replicas if name in (None, replica.name)]
        if not found:
            near = did_you_mean(name or "", [replica.name for replica in status.replicas])
            what = f"no replica '{name}'" if name else "no replica"
            raise JobNotFoundError(f"'{status.name}' has {what}.", fix=near, param="instance")
        return found[0]

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

    def _changed(self, uid: str, edit: Callable[[Wish], Wish]) -> DeploymentStatus:
        def checked(wish: Wish) -> Wish:
            if wish.is_deleting:
                raise DeploymentNotFoundError(f"'{wish.spec.name}' is being deleted.", param="name")
            return edit(wish)

        wish = self._store.change(uid, checked)
        if not self._is_kept(wish):
            self._keep(wish)
        return self._status(uid)

    def _status(self, uid: str) -> DeploymentStatus:
        wish, said = self._store.find(uid)[0]
        return seen(wish, said, time.time())

    def _find(self, name: str, namespace: str | None) -> Wish:
        found = self._store.find(name, namespace)
        if not found:
            near = did_you_mean(name, [wish.spec.name for wish, _ in self._store.all(namespace)])
            where = f" in namespace '{namespace}'" if namespace is not None else ""
            fix = near or "See `millpond deploy list`."
            raise DeploymentNotFoundError(f"There is no deployment '{name}'{where}.", fix=fix, param="name")
        if len(found) > 1:
            spaces = ", ".join(sorted(wish.spec.namespace for wish, _ in found))
            raise DeploymentExistsError(f"Several deployments are called '{name}'.", fix=f"Say -n: {spaces}.")
        return found[0][0]

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
