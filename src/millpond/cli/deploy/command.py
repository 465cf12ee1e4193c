"""`millpond deploy`: create, apply, update, list, get, scale, split, rollout, history, rollback, logs, delete."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from millpond.cli.deploy.connect import open_deployments
from millpond.cli.deploy.flags import (
    Values,
    as_text,
    numbers,
    version_fields,
    version_flags,
    whole_fields,
    whole_flags,
)
from millpond.cli.deploy.views import get_text, history_table, list_table, progress_line
from millpond.cli.jobs.command import read_file
from millpond.cli.jobs.connect import choose, chosen_cluster, cluster_flags
from millpond.cli.jobs.tables import dump

if TYPE_CHECKING:
    from millpond.api.deployment import DeploymentSpec, DeploymentStatus
    from millpond.jobs.deployments.verbs import DeploymentVerbs

_namespace = click.option("-n", "--namespace", metavar="NAME", help="Deployments of this namespace alone.")
_version = click.option("-V", "--version", metavar="NAME", help="The version, when there are several.")
_output = click.option("-o", "--output", type=click.Choice(["json", "yaml", "wide"]), help="Another form of output.")
_wait = click.option("--wait", is_flag=True, help="Wait until everything is as asked; exit code 1 when it fails.")
_timeout = click.option("--timeout", default=600.0, show_default=True, metavar="SECONDS", help="The longest wait.")


@click.group()
@cluster_flags
def deploy(cluster: str, kubeconfig: Path | None, context: str | None) -> None:
    """Serves with replicas behind one port: rollouts, traffic splits, autoscaling.

    A replica is a job, with its quota and its place; so is the gateway that keeps a deployment. A command finds its
    port in $PORT. With --cluster kubernetes a deployment is objects of the cluster, and every verb works on them.
    """
    choose(cluster, kubeconfig, context)


@deploy.command()
@click.argument("name")
@version_flags
@whole_flags
@_wait
@_timeout
def create(name: str, command: tuple[str, ...], wait: bool, timeout: float, **values: Any) -> int:
    """Makes a deployment, or adds a --version to one: NAME --model MODEL, or NAME -- COMMAND."""
    from millpond.jobs.deployments.spec import DEFAULT_VERSION, load_deployments

    version = values["version"] or DEFAULT_VERSION
    fields = version_fields(command, values)
    document = whole_fields(values) | {"name": name, "versions": {version: fields}}
    (spec,) = load_deployments(as_text(document), is_whole=values["version"] is None)
    with open_deployments() as client:
        found = [status for status in client.deployments(spec.namespace) if status.name == name]
        status = client.create(spec) if values["version"] is None else client.add_version(spec)
        what = f"{name} has a version {version} now" if found else f"{name} is being started"
        click.echo(f"{what}, at {status.address}; `millpond deploy get {name}` shows it.")
        return _settle(client, status, timeout) if wait else 0


@deploy.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(allow_dash=True))
@click.option("--dry-run", is_flag=True, help="Only check, and show what would be asked for.")
@_wait
@_timeout
def apply(files: tuple[str, ...], dry_run: bool, wait: bool, timeout: float) -> int:
    """Makes or changes the deployments of YAML files; - reads standard input."""
    from millpond.jobs.deployments.document import document_of
    from millpond.jobs.deployments.spec import load_deployments

    specs = [spec for file in files for spec in load_deployments(read_file(file))]
    if dry_run:
        click.echo(dump([document_of(spec) for spec in specs], "yaml"))
        return 0
    with open_deployments() as client:
        known = {(status.namespace, status.name): status.generation for status in client.deployments()}
        made = [client.apply_spec(spec) for spec in specs]
        for note in (note for spec in specs for note in _notes(spec)):
            click.echo(f"Note: {note}", err=True)
        for status in made:
            before = known.get((status.namespace, status.name))
            word = "created" if before is None else "changed" if before != status.generation else "unchanged"
            click.echo(f"{status.name} {word}, at {status.address}")
        return max([_settle(client, status, timeout) for status in made], default=0) if wait else 0


@deploy.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(allow_dash=True))
@click.option("--device-resource", default="nvidia.com/gpu", show_default=True, help="What nodes call accelerators.")
def render(files: tuple[str, ...], device_resource: str) -> None:
    """Prints the deployments of YAML files as Kubernetes objects, for `kubectl apply -f -`."""
    from millpond.jobs.deployments.kubernetes.render import render as render_objects
    from millpond.jobs.deployments.spec import load_deployments

    specs = [spec for file in files for spec in load_deployments(read_file(file))]
    bodies = [body for spec in specs for body in render_objects(spec, device_resource)]
    click.echo("\n---\n".join(dump(body, "yaml") for body in bodies))


@deploy.command()
@click.argument("name")
@version_flags
@click.option("-n", "--namespace", metavar="NAME", help="Namespace.")
@_wait
@_timeout
def update(
    name: str, command: tuple[str, ...], namespace: str | None, wait: bool, timeout: float, **values: Any
) -> int:
    """Changes a version; its replicas are exchanged one after the other, without losing a request."""
    with open_deployments() as client:
        status = update_version(client, name, namespace, values["version"], lambda old: version_fields(
            command, values, old))  # fmt: skip
        click.echo(f"{name} is at generation {status.generation}; `millpond deploy rollout {name}` follows it.")
        return _settle(client, status, timeout) if wait else 0


def update_version(
    client: DeploymentVerbs, name: str, namespace: str | None, version: str | None, edit: Any
) -> DeploymentStatus:
    """Edits the fields of one version in the short form, and loads them again."""
    from millpond.jobs.deployments.document import document_of
    from millpond.jobs.deployments.spec import load_deployments
    from millpond.jobs.deployments.wish import need_version_name

    spec = client.spec(name, namespace)
    target = need_version_name(spec, version)
    document: Values = document_of(spec)
    document["versions"][target] = edit(document["versions"][target])
    (wanted,) = load_deployments(as_text(document))
    return client.apply_spec(wanted, "updated")


@deploy.command("list")
@_namespace
@_output
def list_deployments(namespace: str | None, output: str | None) -> None:
    """Lists deployments, newest first."""
    import msgspec

    with open_deployments() as client:
        found = client.deployments(namespace)
    if output in ("json", "yaml"):
        click.echo(dump([msgspec.to_builtins(status) for status in found], output))
    else:
        click.echo(list_table(found, time.time(), is_wide=output == "wide"))


@deploy.command()
@click.argument("name")
@_namespace
@_output
def get(name: str, namespace: str | None, output: str | None) -> None:
    """Shows a deployment: versions, replicas, events. As json or yaml, `spec` is what `apply` reads."""
    import msgspec

    from millpond.jobs.deployments.document import document_of

    with open_deployments() as client:
        status = client.get(name, namespace)
        spec, events = client.spec(status.uid), client.events(status)
    if output in ("json", "yaml"):
        shown = {"spec": document_of(spec), "status": msgspec.to_builtins(status)}
        click.echo(dump(shown | {"events": msgspec.to_builtins(events)}, output))
    else:
        click.echo(get_text(status, events, time.time()))


@deploy.command()
@click.argument("name")
@click.argument("replicas", type=click.IntRange(0))
@_version
@_namespace
@_wait
@_timeout
def scale(
    name: str, replicas: int, version: str | None, namespace: str | None, wait: bool, timeout: float
) -> int:
    """Sets how many replicas there are; with autoscaling, where it goes on from."""
    with open_deployments() as client:
        status = client.scale(name, replicas, version, namespace)
        click.echo(f"{name} shall have {replicas} replicas.")
        return _settle(client, status, timeout) if wait else 0


@deploy.command()
@click.argument("name")
@click.argument("weights", nargs=-1, required=True, metavar="VERSION=WEIGHT...")
@_namespace
def split(name: str, weights: tuple[str, ...], namespace: str | None) -> None:
    """Splits the requests between versions by weight: NAME v1=90 v2=10."""
    asked = numbers("WEIGHT", weights)
    wrong = [key for key, weight in asked.items() if weight < 0 or weight != int(weight) or weight > 1_000_000]
    if wrong:
        raise click.UsageError(f"{wrong[0]}: a weight is a whole number from 0.")
    with open_deployments() as client:
        client.split(name, {key: int(weight) for key, weight in asked.items()}, namespace)
        spec = client.spec(name, namespace)
    total = sum(version.weight for version in spec.versions)
    shares = ", ".join(f"{version.name} {100 * version.weight / total:.3g} %" for version in spec.versions)
    click.echo(f"{name}: {shares}")


@deploy.command()
@click.argument("name")
@_namespace
@_timeout
def rollout(name: str, namespace: str | None, timeout: float) -> int:
    """Follows a deployment until everything is as asked; exit code 1 when it fails or the time is over."""
    with open_deployments() as client:
        return _settle(client, client.get(name, namespace), timeout)


@deploy.command()
@click.argument("name")
@_namespace
def history(name: str, namespace: str | None) -> None:
    """Lists the revisions of each version; * marks the one that shall run."""
    with open_deployments() as client:
        click.echo(history_table(client.revisions(name, namespace), client.spec(name, namespace), time.time()))


@deploy.command()
@click.argument("name")
@click.option("--to", type=click.IntRange(1), metavar="REVISION", help="This one; else the one before.")
@_version
@_namespace
@_wait
@_timeout
def rollback(
    name: str, to: int | None, version: str | None, namespace: str | None, wait: bool, timeout: float
) -> int:
    """Goes back to an earlier revision."""
    with open_deployments() as client:
        status = client.roll_back(name, to, version, namespace)
        click.echo(f"{name} goes {client.cause(status.uid)}.")
        return _settle(client, status, timeout) if wait else 0


@deploy.command()
@click.argument("name")
@click.option("-i", "--instance", metavar="NAME", help="A replica; without it the first.")
@click.option("-g", "--gateway", is_flag=True, help="The gateway instead.")
@click.option("-f", "--follow", is_flag=True, help="Go on until the replica has ended.")
@click.option("-t", "--tail", type=click.IntRange(min=0), metavar="N", help="Only the last N lines.")
@_namespace
def logs(
    name: str, instance: str | None, gateway: bool, follow: bool, tail: int | None, namespace: str | None
) -> None:
    """Prints what a replica wrote."""
    with open_deployments() as client:
        if gateway:
            pieces = client.gateway_logs(name, namespace, tail=tail)
        else:
            replica = client.find_replica(client.get(name, namespace), instance)
            pieces = client.logs(replica, follow=follow, tail=tail)
        for piece in pieces:
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()


@deploy.command()
@click.argument("names", nargs=-1, required=True)
@_version
@_namespace
def delete(names: tuple[str, ...], version: str | None, namespace: str | None) -> None:
    """Deletes deployments, or one --version; replicas finish what they have first."""
    with open_deployments() as client:
        if version is not None:
            for name in names:
                client.drop_version(name, version, namespace)
                click.echo(f"{name} loses version {version}.")
            return
        for name, is_gone in zip(names, client.delete(names, namespace), strict=True):
            click.echo(f"{name} was deleted." if is_gone else f"{name} still finishes its requests.")


def _notes(spec: DeploymentSpec) -> list[str]:
    """What of a file has no effect where it runs."""
    names = {"template": "pod", "ports": "ports"} if chosen_cluster().is_local else {}
    unused = [
        f"versions.{version.name}.{field} has no effect on a local cluster."
        for version in spec.versions
        for field, attribute in names.items()
        if getattr(version.template, attribute)
    ]
    return [*spec.notes, *unused]


def _settle(client: DeploymentVerbs, status: DeploymentStatus, timeout_s: float) -> int:
    """Prints how it comes along; 0 when it is as asked for."""
    from millpond.api.deployment import DeploymentPhase

    deadline, shown = time.monotonic() + timeout_s, ""
    while True:
        now = client.get(status.uid)
        line = progress_line(now)
        if line != shown and now.observed >= now.generation:
            click.echo(line, err=True)
            shown = line
        if now.is_settled:
            click.echo(f"{now.name} is ready at {now.address}")
            return 0
        if now.phase is DeploymentPhase.FAILING or time.monotonic() >= deadline:
            why = now.message or f"It is not ready after {timeout_s:g} s."
            click.echo(f"{now.name}: {now.phase.value}. {why}", err=True)
            return 1
        time.sleep(2 * client.look_every_s)
