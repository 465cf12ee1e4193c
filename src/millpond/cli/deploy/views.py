"""Tables of deployments. Pure; the time is passed in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from millpond.cli.jobs.tables import age, table

if TYPE_CHECKING:
    from millpond.api.deployment import DeploymentSpec, DeploymentStatus, Revision, VersionStatus
    from millpond.jobs.store import EventRecord

_SHOWN_EVENTS = 12


def list_table(found: Sequence[DeploymentStatus], now_s: float, *, is_wide: bool = False) -> str:
    """The table of `deploy list`."""
    head = ["NAME", "PHASE", "READY", "VERSIONS", "QUEUE", "REQUESTS", "AGE", "ADDRESS"]
    wide = ["NAMESPACE", "KIND", "MODEL", "MESSAGE"] if is_wide else []
    rows = []
    for status in found:
        models = sorted({version.model for version in status.versions if version.model})
        row: list[object] = [
            status.name, status.phase.value, _ready(status), _versions(status), status.queue,
            sum(version.requests for version in status.versions), age(now_s - status.created_s), status.address,
        ]  # fmt: skip
        more = [status.namespace, status.kind, ",".join(models) or "-", status.message or "-"] if is_wide else []
        rows.append([*row, *more])
    return table([*head, *wide], rows)


def _ready(status: DeploymentStatus) -> str:
    return f"{sum(v.ready for v in status.versions)}/{sum(v.desired for v in status.versions)}"


def _versions(status: DeploymentStatus) -> str:
    """Names, with the share of each when there are several."""
    total = sum(version.weight for version in status.versions)
    if len(status.versions) < 2 or not total:
        return ",".join(version.name for version in status.versions) or "-"
    return ",".join(f"{version.name}:{share(version, total)}" for version in status.versions)


def share(version: VersionStatus, total: int) -> str:
    """A version's part of the requests."""
    return f"{100 * version.weight / total:.3g}%" if total else "-"


def get_text(status: DeploymentStatus, events: Sequence[EventRecord], now_s: float) -> str:
    """What `deploy get` prints."""
    rows = [
        ("Name", status.name), ("Namespace", status.namespace), ("Phase", status.phase.value),
        ("Message", status.message), ("Address", status.address), ("Waiting", f"{status.queue} requests"),
        ("Age", age(now_s - status.created_s)),
    ]  # fmt: skip
    blocks = ["\n".join(f"{label + ':':<12}{value}" for label, value in rows if value)]
    total = sum(version.weight for version in status.versions)
    head = ("VERSION", "PHASE", "REVISION", "SHARE", "DESIRED", "UPDATED", "READY", "REQUESTS", "FAILED", "MEASURED")
    blocks.append(table(head, [
        (version.name, version.phase.value, version.revision or "-", share(version, total), version.desired,
         version.updated, version.ready, version.requests, version.failures, _measured(version.readings))
        for version in status.versions
    ]))  # fmt: skip
    replica_head = ("REPLICA", "REVISION", "PHASE", "BUSY", "REQUESTS", "AGE", "NODE", "ADDRESS")
    blocks.append(table(replica_head, [
        (replica.name, replica.revision, replica.phase.value, replica.in_flight, replica.requests,
         age(now_s - replica.created_s), replica.node or "-", replica.address or "-")
        for replica in status.replicas
    ]))  # fmt: skip
    shown = events[-_SHOWN_EVENTS:]
    blocks.append(table(("EVENT", "AGE", "MESSAGE"), [(e.reason, age(now_s - e.at_s), e.message) for e in shown]))
    return "\n\n".join(blocks)


def _measured(readings: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in readings.items()) or "-"


def history_table(revisions: Mapping[str, Sequence[Revision]], spec: DeploymentSpec, now_s: float) -> str:
    """The table of `deploy history`, the template that runs last."""
    rows: list[tuple[object, ...]] = []
    for version in spec.versions:
        for revision in revisions[version.name]:
            mark = "*" if revision is revisions[version.name][-1] else ""
            command = revision.template.model or " ".join(revision.template.role.command)
            shown = command if len(command) <= 70 else f"{command[:67]}..."
            cause, since = revision.cause or "-", age(now_s - revision.created_s)
            rows.append((version.name, f"{revision.number}{mark}", since, cause, shown))
    return table(("VERSION", "REVISION", "AGE", "CAUSE", "RUNS"), rows)


def progress_line(status: DeploymentStatus) -> str:
    """One line of how far a rollout has come."""
    parts = []
    for version in status.versions:
        text = f"{version.name}: {version.updated} of {version.desired} updated, {version.ready} ready"
        leaving = sum(r.phase.value == "Draining" for r in status.replicas if r.version == version.name)
        parts.append(text + (f", {leaving} finishing" if leaving else ""))
    why = f" ({status.message})" if status.message else ""
    return "; ".join(parts or [status.phase.value]) + why
