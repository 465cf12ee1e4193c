"""The verbs of deployments, wherever wishes are kept: apply, look, scale, split, roll back.

A verb is an edit of a wish. Where wishes are kept, and how they come true, a client says: `client` for this machine,
`kubernetes.client` for a cluster. Knows nothing about terminals and HTTP.
"""

from __future__ import annotations

import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence

from millpond.api.deployment import (
    DeploymentExistsError,
    DeploymentNotFoundError,
    DeploymentSpec,
    DeploymentStatus,
    Revision,
    ServerStatus,
    VersionSpec,
)
from millpond.api.job import JobNotFoundError
from millpond.base.suggest import did_you_mean
from millpond.jobs.deployments import wish as wishes
from millpond.jobs.deployments.spec import load_deployments
from millpond.jobs.deployments.wish import Wish
from millpond.jobs.looking import wait_until
from millpond.jobs.store import EventRecord

Edit = Callable[[Wish], Wish]


class DeploymentVerbs(ABC):
    """What a user does with deployments. `look_every_s`: between two looks of `wait`."""

    look_every_s = 0.1

    # Of a place ----------------------------------------------------------------------------------------------

    @abstractmethod
    def close(self) -> None:
        """Ends everything."""

    @abstractmethod
    def create(self, spec: DeploymentSpec) -> DeploymentStatus:
        """Makes a deployment.

        Raises:
            DeploymentExistsError: There is one of that name.
        """

    @abstractmethod
    def deployments(self, namespace: str | None = None) -> list[DeploymentStatus]:
        """Deployments, newest first."""

    @abstractmethod
    def events(self, status: DeploymentStatus) -> list[EventRecord]:
        """What happened to a deployment, oldest first."""

    @abstractmethod
    def logs(self, replica: ServerStatus, *, follow: bool = False, tail: int | None = None) -> Iterator[bytes]:
        """What a replica wrote, in pieces."""

    @abstractmethod
    def gateway_logs(self, name: str, namespace: str | None = None, *, tail: int | None = None) -> Iterator[bytes]:
        """What the gateway wrote, in pieces."""

    @abstractmethod
    def delete(self, names: Sequence[str], namespace: str | None = None, wait_s: float = 90.0) -> list[bool]:
        """Deletes deployments once their replicas have finished what they have, and waits for that.

        Returns:
            For each, whether it is gone.

        Raises:
            DeploymentNotFoundError: One of them is not there; then none is deleted.
        """

    @abstractmethod
    def _wishes(self, name: str | None, namespace: str | None) -> list[Wish]:
        """Wishes by name or uid; without one all."""

    @abstractmethod
    def _change(self, wish: Wish, edit: Edit) -> DeploymentStatus:
        """Edits the wish as it is by then, and sees to it that it comes true."""

    @abstractmethod
    def _status(self, wish: Wish) -> DeploymentStatus:
        """How a deployment goes."""

    # The same everywhere -------------------------------------------------------------------------------------

    def apply(self, text: str) -> list[DeploymentStatus]:
        """Makes the deployments of a YAML text, or changes those that are there.

        Raises:
            SpecError: The text is wrong; then nothing is changed.
        """
        return [self.apply_spec(spec) for spec in load_deployments(text)]

    def apply_spec(self, spec: DeploymentSpec, cause: str = "applied") -> DeploymentStatus:
        """Makes a deployment, or changes the one of that name."""
        found = self._wishes(spec.name, spec.namespace)
        if not found:
            return self.create(spec)
        now_s = time.time()

        def edit(wish: Wish) -> Wish:
            gateway = spec.gateway
            if not gateway.port:  # not said: as it is
                old = wish.spec.gateway
                gateway = dataclasses.replace(gateway, host=old.host, port=old.port)
            wanted = dataclasses.replace(spec, gateway=gateway)
            return wish if wanted == wish.spec else wishes.change(wish, wanted, now_s, cause)

        return self._change(found[0], edit)

    def add_version(self, spec: DeploymentSpec, *, replaces: bool = False) -> DeploymentStatus:
        """Adds the versions of `spec` to a deployment, or makes it.

        Raises:
            DeploymentExistsError: It has a version of that name, and `replaces` is not set.
        """
        found = self._wishes(spec.name, spec.namespace)
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

        return self._change(found[0], edit)

    def update_version(
        self, name: str, version: str, edit: Callable[[VersionSpec], VersionSpec], namespace: str | None = None,
        cause: str = "updated",
    ) -> DeploymentStatus:  # fmt: skip
        """Changes one version."""
        now_s = time.time()
        return self._change(
            self._find(name, namespace),
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
        return self._change(self._find(name, namespace), lambda wish: wishes.split(wish, weights, now_s))

    def roll_back(
        self, name: str, revision: int | None = None, version: str | None = None, namespace: str | None = None
    ) -> DeploymentStatus:
        """Goes back to an earlier revision of a version."""
        wish, now_s = self._find(name, namespace), time.time()
        target = wishes.need_version_name(wish.spec, version)
        return self._change(wish, lambda now: wishes.roll_back(now, target, revision, now_s))

    def drop_version(self, name: str, version: str, namespace: str | None = None) -> DeploymentStatus:
        """Takes a version out of a deployment."""
        now_s = time.time()
        return self._change(self._find(name, namespace), lambda wish: wishes.drop_version(wish, version, now_s))

    def get(self, name: str, namespace: str | None = None) -> DeploymentStatus:
        """A deployment by name or uid.

        Raises:
            DeploymentNotFoundError: There is none.
        """
        return self._status(self._find(name, namespace))

    def spec(self, name: str, namespace: str | None = None) -> DeploymentSpec:
        """What was asked for."""
        return self._find(name, namespace).spec

    def cause(self, name: str) -> str:
        """What the last change was."""
        return self._find(name, None).cause

    def revisions(self, name: str, namespace: str | None = None) -> dict[str, tuple[Revision, ...]]:
        """The templates that each version had, oldest first."""
        return self._find(name, namespace).revisions

    def wait(
        self, name: str, until: Callable[[DeploymentStatus], bool], timeout_s: float, namespace: str | None = None
    ) -> DeploymentStatus:
        """Waits until a deployment is as wanted, or the time is over; returns how it is then."""
        return wait_until(lambda: self.get(name, namespace), until, timeout_s, self.look_every_s)

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

    def _find(self, name: str, namespace: str | None) -> Wish:
        found = self._wishes(name, namespace)
        if not found:
            near = did_you_mean(name, [wish.spec.name for wish in self._wishes(None, namespace)])
            where = f" in namespace '{namespace}'" if namespace is not None else ""
            fix = near or "See `millpond deploy list`."
            raise DeploymentNotFoundError(f"There is no deployment '{name}'{where}.", fix=fix, param="name")
        if len(found) > 1:
            spaces = ", ".join(sorted(wish.spec.namespace for wish in found))
            raise DeploymentExistsError(f"Several deployments are called '{name}'.", fix=f"Say -n: {spaces}.")
        return found[0]
