"""`millpond arena serve`: Arena's words for deployments: deploy, list, get, logs, delete, update, split."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from millpond.cli.arena.serve_flags import (
    CUSTOM,
    TRITON,
    custom_run,
    notes_of,
    pod_fields,
    serve_flags,
    triton_run,
    version_fields,
)
from millpond.cli.arena.serve_views import KINDS, get_text, list_table, serving_document, servings
from millpond.cli.deploy.connect import open_deployments
from millpond.cli.deploy.flags import Values, as_text, pairs
from millpond.cli.jobs.connect import chosen_cluster
from millpond.cli.jobs.tables import dump

if TYPE_CHECKING:
    from millpond.api.deployment import DeploymentStatus

SPLIT_NAMES = ("trs", "traffic-router", "traffic-router-split", "traffic-shift", "traffic-shifting")
_namespace = click.option("-n", "--namespace", metavar="NAME", help="Namespace of the serving job.")
_type = click.option("-T", "--type", "kind", metavar="TYPE", help="Kind of serving job: custom, triton.")
_version = click.option("-v", "--version", metavar="NAME", help="The version, when there are several.")
_output = click.option("-o", "--output", type=click.Choice(["json", "yaml", "wide"]), help="Another form of output.")


class _ServeGroup(click.Group):
    """Knows Arena's other names of traffic-split, without showing them."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, "traffic-split" if cmd_name in SPLIT_NAMES else cmd_name)


@click.group(cls=_ServeGroup)
def serve() -> None:
    """Serves models: deploys, shows, changes, deletes."""


@serve.group()
def update() -> None:
    """Changes a serving job; replicas are exchanged without losing a request."""


@serve.command("custom")
@serve_flags(CUSTOM)
def custom(command: tuple[str, ...], **values: Any) -> None:
    """Serves with a command of your own, which listens on $PORT."""
    is_local = chosen_cluster().is_local
    if not command and (is_local or not values["image"]):
        raise click.UsageError("There is no command; write it behind the flags.")
    if is_local and "PORT" not in " ".join(command):
        click.echo("Note: a replica on a local cluster must listen on $PORT; the command does not name it.", err=True)
    run = custom_run(command, values) if command else None
    _deploy("custom", run, values["restful_port"] or values["port"], values)


@serve.command("triton")
@serve_flags(TRITON)
def triton(command: tuple[str, ...], **values: Any) -> None:
    """Serves a Triton model repository, with our own server."""
    if not values["model_repository"]:
        raise click.UsageError("--model-repository is missing.")
    if command:
        raise click.UsageError(f"'{command[0]}': triton takes no command.")
    _deploy("triton", triton_run(values), values["http_port"], values, ready="/v2/health/ready")


@update.command("custom")
@serve_flags(CUSTOM)
def update_custom(command: tuple[str, ...], **values: Any) -> None:
    """Changes a custom serving job."""
    _update(custom_run(command, values) if command else None, values)


@update.command("triton")
@serve_flags(TRITON)
def update_triton(command: tuple[str, ...], **values: Any) -> None:
    """Changes a serving job of a Triton model repository."""
    _update(triton_run(values) if values["model_repository"] else None, values)


def _deploy(kind: str, run: list[str] | None, port: int, values: Values, ready: str = "") -> None:
    from millpond.jobs.deployments.spec import load_deployments

    version = values["version"] or time.strftime("%Y%m%d%H%M")
    fields = version_fields(run, values, ready=ready)
    if not chosen_cluster().is_local:
        fields |= pod_fields(kind, port, values)
    document: Values = {"name": values["name"], "kind": kind, "port": port, "versions": {version: fields}}
    if values["namespace"]:
        document["namespace"] = values["namespace"]
    if values["label"]:
        document["labels"] = pairs("--label", values["label"])
    (spec,) = load_deployments(as_text(document))
    with open_deployments() as client:
        status = client.add_version(spec)
    for note in notes_of(values):
        click.echo(f"Note: {note}", err=True)
    click.echo(f"The Job {spec.name} has been submitted successfully")
    click.echo(f"It serves at {status.address}")
    line = f"millpond arena serve get {spec.name} --type {kind} -n {spec.namespace}"
    click.echo(f"You can run `{line}` to check the job status")


def _update(run: list[str] | None, values: Values) -> None:
    from millpond.cli.deploy.command import update_version

    more = {} if chosen_cluster().is_local else pod_fields("", 0, values)
    with open_deployments() as client:
        update_version(
            client, values["name"], values["namespace"], values["version"] or None,
            lambda old: version_fields(run, values, old) | more,
        )  # fmt: skip
    for note in notes_of(values):
        click.echo(f"Note: {note}", err=True)
    click.echo(f"The serving job {values['name']} has been updated successfully")


@serve.command("list")
@_namespace
@click.option("-A", "--all-namespaces", is_flag=True, help="Serving jobs of every namespace.")
@_type
@_output
def list_servings(namespace: str | None, all_namespaces: bool, kind: str | None, output: str | None) -> None:
    """Lists serving jobs, a line a version."""
    with open_deployments() as client:
        found = [
            status for status in client.deployments(None if all_namespaces else namespace) if _is_kind(status, kind)
        ]
    now_s = time.time()
    if output in ("json", "yaml"):
        click.echo(dump([serving_document(status, version, now_s) for status, version in servings(found)], output))
    else:
        click.echo(list_table(found, with_namespace=all_namespaces))


@serve.command()
@click.argument("name")
@_namespace
@_type
@_version
@_output
def get(name: str, namespace: str | None, kind: str | None, version: str | None, output: str | None) -> None:
    """Shows a serving job and its instances."""
    from millpond.jobs.deployments.wish import need_version_name

    with open_deployments() as client:
        status = client.get(name, namespace)
        _check_kind(status, kind)
        chosen = need_version_name(client.spec(status.uid), version)
    found = [pair for pair in servings([status]) if pair[1].name == chosen]
    now_s = time.time()
    if not found:
        click.echo(f"{status.name}: {status.message or 'it is being started.'}", err=True)
    elif output in ("json", "yaml"):
        click.echo(dump(serving_document(*found[0], now_s), output))
    else:
        click.echo(get_text(*found[0], now_s))


@serve.command()
@click.argument("name")
@_namespace
@_type
@_version
@click.option("-i", "--instance", metavar="NAME", help="An instance; without it the first.")
@click.option("-f", "--follow", is_flag=True, help="Go on until the instance has ended.")
@click.option("-t", "--tail", type=int, default=-1, metavar="N", help="Only the last N lines; -1 all.")
@click.option("-c", "--container", hidden=True)
def logs(
    name: str, namespace: str | None, kind: str | None, version: str | None, instance: str | None, follow: bool,
    tail: int, container: str | None,
) -> None:  # fmt: skip
    """Prints what an instance wrote."""
    with open_deployments() as client:
        status = client.get(name, namespace)
        _check_kind(status, kind)
        first = next((replica.name for replica in status.replicas if version in (None, replica.version)), None)
        replica = client.find_replica(status, instance or first)
        for piece in client.logs(replica, follow=follow, tail=None if tail < 0 else tail):
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()


@serve.command()
@click.argument("names", nargs=-1, required=True)
@_namespace
@_type
@_version
def delete(names: tuple[str, ...], namespace: str | None, kind: str | None, version: str | None) -> None:
    """Deletes serving jobs, or one version of them."""
    with open_deployments() as client:
        for name in names:
            _check_kind(client.get(name, namespace), kind)
        for name in names:
            if version is not None and [v.name for v in client.spec(name, namespace).versions] != [version]:
                client.drop_version(name, version, namespace)
            else:
                client.delete([name], namespace)
            click.echo(f"The serving job {name} has been deleted successfully")


@serve.command("traffic-split")
@click.option("--name", required=True, help="Name of the serving job.")
@click.option("-n", "--namespace", metavar="NAME", help="Namespace of the serving job.")
@click.option("-v", "--version-weight", "weights", multiple=True, required=True, metavar="V:W",
              help="A version and its weight: v1:90; several with commas, or the flag again.")  # fmt: skip
def traffic_split(name: str, namespace: str | None, weights: tuple[str, ...]) -> None:
    """Splits requests between versions by weight."""
    asked = {}
    for text in (part for given in weights for part in given.split(",")):
        version, _, weight = text.rpartition(":")
        if not version or not weight.isdigit() or len(weight) > 6:
            raise click.UsageError(f"--version-weight: '{text}' is not VERSION:WEIGHT.")
        asked[version] = int(weight)
    with open_deployments() as client:
        client.split(name, asked, namespace)
    click.echo(f"The traffic of {name} has been split successfully")


def _is_kind(status: DeploymentStatus, kind: str | None) -> bool:
    return kind is None or status.kind in (kind.casefold(), KINDS.get(kind.casefold()))


def _check_kind(status: DeploymentStatus, kind: str | None) -> None:
    if not _is_kind(status, kind):
        raise click.UsageError(f"{status.name} is of the type {status.kind}, not {kind}.")
