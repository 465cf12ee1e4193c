"""What the user wants of a deployment, with the templates it had: changed by the verbs, read by the keeper.

Only the verbs write it, inside a transaction of the store; only the keeper writes the status. So neither can lose what
the other wrote. Pure.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from millpond.api.deployment import DeploymentNotFoundError, DeploymentSpec, Revision, VersionSpec
from millpond.api.job import SpecError
from millpond.base.suggest import did_you_mean

KEPT_REVISIONS = 10
UID_LABEL, VERSION_LABEL, REVISION_LABEL = "millpond.io/deployment", "millpond.io/version", "millpond.io/revision"


@dataclass(frozen=True, slots=True)
class Wish:
    """A deployment as it should be.

    Attributes:
        generation: Counts changes.
        revisions: Of each version, oldest first; the last one is to run.
        cause: What the last change was, for people.
    """

    uid: str
    spec: DeploymentSpec
    created_s: float
    generation: int = 1
    revisions: dict[str, tuple[Revision, ...]] = field(default_factory=dict)
    gateway_job: str = ""
    submit_dir: str = ""
    submit_env: dict[str, str] = field(default_factory=dict)
    is_deleting: bool = False
    cause: str = ""

    def revision(self, version: str) -> Revision:
        """The template that a version should run."""
        return self.revisions[version][-1]


def make_wish(spec: DeploymentSpec, uid: str, now_s: float, submit_dir: str, submit_env: dict[str, str]) -> Wish:
    """A deployment that was just asked for."""
    wish = Wish(uid, spec, now_s, generation=0, submit_dir=submit_dir, submit_env=submit_env)
    return change(wish, spec, now_s, "created")


def change(wish: Wish, spec: DeploymentSpec, now_s: float, cause: str) -> Wish:
    """The wish with another specification; a version whose template differs gets a revision.

    Raises:
        SpecError: What cannot change while it runs would change.
    """
    if not any(version.weight for version in spec.versions):
        raise SpecError("No version would get requests.", fix="Give one of them a weight above 0.", param="weight")
    old = wish.spec.gateway
    if (spec.gateway.host, spec.gateway.port) != (old.host, old.port):
        raise SpecError(
            "gateway: the address of a deployment that runs cannot change.",
            fix=f"Leave host and port out ({old.host}:{old.port} stays), or delete it first.",
            param="port",
        )
    revisions = {}
    for version in spec.versions:
        had = wish.revisions.get(version.name, ())
        if not had or had[-1].template != version.template:
            # A template it had before keeps its number, so that replicas which still run it can stay.
            same = [revision.number for revision in had if revision.template == version.template]
            number = same[0] if same else 1 + max((revision.number for revision in had), default=0)
            others = tuple(revision for revision in had if revision.number != number)
            had = (*others, Revision(number, version.template, now_s, cause))
        revisions[version.name] = had[-KEPT_REVISIONS:]
    return dataclasses.replace(wish, spec=spec, generation=wish.generation + 1, revisions=revisions, cause=cause)


def change_version(
    wish: Wish, name: str, edit: Callable[[VersionSpec], VersionSpec], now_s: float, cause: str
) -> Wish:
    """The wish with one version edited."""
    found = need_version(wish, name)
    versions = tuple(edit(version) if version is found else version for version in wish.spec.versions)
    return change(wish, dataclasses.replace(wish.spec, versions=versions), now_s, cause)


def roll_back(wish: Wish, name: str, number: int | None, now_s: float) -> Wish:
    """The wish with the template of an earlier revision: the one before, or the one of that number.

    Raises:
        DeploymentNotFoundError: There is no such revision.
    """
    need_version(wish, name)
    had = wish.revisions[name]
    earlier = [revision for revision in had[:-1] if number is None or revision.number == number]
    if not earlier:
        known = ", ".join(str(revision.number) for revision in had[:-1]) or "none"
        wanted = "an earlier revision" if number is None else f"an earlier revision {number}"
        raise DeploymentNotFoundError(
            f"Version '{name}' of '{wish.spec.name}' has not {wanted}.", fix=f"There are: {known}.", param="revision"
        )
    target = earlier[-1]
    cause = f"back to revision {target.number}"
    return change_version(
        wish, name, lambda version: dataclasses.replace(version, template=target.template), now_s, cause
    )


def split(wish: Wish, weights: Mapping[str, int], now_s: float) -> Wish:
    """The wish with other weights; versions that are not named keep theirs.

    Raises:
        SpecError: No version would get requests.
    """
    for name in weights:
        need_version(wish, name)
    versions = tuple(
        dataclasses.replace(version, weight=weights.get(version.name, version.weight)) for version in wish.spec.versions
    )
    return change(wish, dataclasses.replace(wish.spec, versions=versions), now_s, "split")


def add_versions(wish: Wish, spec: DeploymentSpec, now_s: float) -> Wish:
    """The wish with the versions of `spec` added or exchanged, everything else as it is."""
    given = {version.name: version for version in spec.versions}
    kept = tuple(given.pop(version.name, version) for version in wish.spec.versions)
    changed = dataclasses.replace(wish.spec, versions=(*kept, *given.values()))
    return change(wish, changed, now_s, "updated")


def drop_version(wish: Wish, name: str, now_s: float) -> Wish:
    """The wish without a version; the last one cannot go.

    Raises:
        SpecError: It is the last one.
    """
    found = need_version(wish, name)
    left = tuple(version for version in wish.spec.versions if version is not found)
    if not left:
        raise SpecError(f"'{name}' is the last version.", fix="Delete the deployment.", param="version")
    if not any(version.weight for version in left):
        left = (dataclasses.replace(left[0], weight=100), *left[1:])
    return change(wish, dataclasses.replace(wish.spec, versions=left), now_s, f"without {name}")


def need_version_name(spec: DeploymentSpec, name: str | None) -> str:
    """The name of the version that is meant: the one given, or the only one.

    Raises:
        DeploymentNotFoundError: There are several, or none of that name.
    """
    names = [version.name for version in spec.versions]
    if name is None and len(names) == 1:
        return names[0]
    if name in names:
        return name
    problem = "has several versions" if name is None else f"has no version '{name}'"
    near = did_you_mean(name, names) if name is not None else ""
    fix = near or f"Say which: {', '.join(names)}."
    raise DeploymentNotFoundError(f"'{spec.name}' {problem}.", fix=fix, param="version")


def need_version(wish: Wish, name: str) -> VersionSpec:
    """The version of that name.

    Raises:
        DeploymentNotFoundError: There is none.
    """
    found = wish.spec.version(need_version_name(wish.spec, name))
    assert found is not None
    return found
