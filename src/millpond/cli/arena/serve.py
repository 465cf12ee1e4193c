"""`millpond arena serve`: Arena's words for deployments: deploy, list, get, logs, delete, update, split."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from millpond.cli.arena.serve_views import KINDS, get_text, list_table, serving_document, servings
from millpond.cli.deploy.connect import open_deployments
from millpond.cli.deploy.flags import Values, as_text, pairs
from millpond.cli.jobs.tables import dump

if TYPE_CHECKING:
    from millpond.api.deployment import DeploymentStatus

Decorated = Callable[..., Any]
Flag = tuple[tuple[str, ...], dict[str, Any]]
_PORTS = click.IntRange(0, 65535)
_COMMON: tuple[Flag, ...] = (
    (("--name",), {"required": True, "help": "Name of the serving job."}),
    (("--version",), {"default": "", "help": "Its version; the time without it."}),
    (("-n", "--namespace"), {"help": "Namespace of the serving job."}),
    (("--image",), {"help": "Image; a local cluster runs the command as it stands."}),
    (("--gpus",), {"type": click.IntRange(0), "help": "Accelerators of each replica."}),
    (("--cpu",), {"help": "Processors of each replica: 2, 500m."}),
    (("--memory",), {"help": "Memory of each replica: 4Gi."}),
    (("--replicas",), {"type": click.IntRange(0), "help": "Replicas (1)."}),
    (("-e", "--env"), {"multiple": True, "metavar": "K=V", "help": "A variable."}),
    (("-l", "--label"), {"multiple": True, "metavar": "K=V", "help": "A label."}),
    (("--selector",), {"multiple": True, "metavar": "K=V", "help": "A label that nodes must have."}),
    (("-d", "--data"), {"multiple": True, "metavar": "NAME:PATH", "help": "A dataset (see data list)."}),
    (("--max-surge",), {"help": 'Replicas beyond the number in an update: 1, "25%".'}),
    (("--max-unavailable",), {"help": "Replicas that may be missing in an update."}),
    (("--readiness-probe-action",), {"type": click.Choice(["httpGet", "tcpSocket"]), "help": "When one is ready."}),
    (("--readiness-probe-action-option",), {"multiple": True, "metavar": '"path: /x"', "help": "Where to ask."}),
    (("--model-name",), {"help": "Name of the model, shown in lists."}),
    (("--shell",), {"default": "sh", "type": click.Choice(["sh", "bash"]), "help": "What runs the command."}),
)
_NOTED: tuple[Flag, ...] = tuple(
    ((f"--{name}",), {"multiple": True} if is_many else {"is_flag": True} if is_flag else {})
    for name, is_many, is_flag in (
        ("gpumemory", False, False), ("gpucore", False, False), ("enable-istio", False, True),
        ("expose-service", False, True), ("image-pull-policy", False, False), ("image-pull-secret", True, False),
        ("toleration", True, False), ("annotation", True, False), ("data-dir", True, False),
        ("share-memory", False, False), ("device", True, False), ("liveness-probe-action", False, False),
        ("liveness-probe-action-option", True, False), ("liveness-probe-option", True, False),
        ("readiness-probe-option", True, False), ("startup-probe-action", False, False),
        ("startup-probe-action-option", True, False), ("startup-probe-option", True, False),
        ("model-version", False, False), ("data-subpath-expr", True, False), ("config-file", True, False),
        ("temp-dir", True, False), ("metrics-port", False, False), ("grpc-port", False, False),
    )
)  # fmt: skip
_CUSTOM: tuple[Flag, ...] = (
    (("--port",), {"type": _PORTS, "default": 0, "help": "Port of the service, when there is no --restful-port."}),
    (("--restful-port",), {"type": _PORTS, "default": 0, "help": "Port of the service; a free one without it."}),
)
_TRITON: tuple[Flag, ...] = (
    (("--model-repository",), {"help": "Directory of models."}),
    (("--http-port",), {"type": _PORTS, "default": 0, "help": "Port of the service; a free one without it."}),
    (("--load-model",), {"multiple": True, "help": "Load these alone."}),
    (("--allow-metrics",), {"is_flag": True, "hidden": True}),
    (("--extend-command",), {"default": "", "help": "More flags of tritonserver."}),
)
SPLIT_NAMES = ("trs", "traffic-router", "traffic-router-split", "traffic-shift", "traffic-shifting")
_SERVE_TRITON = f'exec {shlex.quote(sys.executable)} -c "from millpond.cli.tritonserver import main; main()"'
_TRITON_PORTS = '--http-port "$PORT" --allow-grpc false --allow-metrics false'

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


def _flags(*tables: tuple[Flag, ...]) -> Callable[[Decorated], Decorated]:
    def decorate(command: Decorated) -> Decorated:
        hidden = [(names, options | {"hidden": True}) for names, options in _NOTED]
        for names, options in reversed([*(flag for table in tables for flag in table), *_COMMON, *hidden]):
            command = click.option(*names, **options)(command)
        return click.argument("command", nargs=-1, type=click.UNPROCESSED)(command)

    return decorate


@serve.command("custom")
@_flags(_CUSTOM)
def custom(command: tuple[str, ...], **values: Any) -> None:
    """Serves with a command of your own, which listens on $PORT."""
    if not command:
        raise click.UsageError("There is no command; write it behind the flags.")
    if "PORT" not in " ".join(command):
        click.echo("Note: a replica on a local cluster must listen on $PORT; the command does not name it.", err=True)
    _deploy("custom", _custom_run(command, values), values["restful_port"] or values["port"], values)


@serve.command("triton")
@_flags(_TRITON)
def triton(command: tuple[str, ...], **values: Any) -> None:
    """Serves a Triton model repository, with our own server."""
    if not values["model_repository"]:
        raise click.UsageError("--model-repository is missing.")
    if command:
        raise click.UsageError(f"'{command[0]}': triton takes no command.")
    _deploy("triton", _triton_run(values), values["http_port"], values, ready="/v2/health/ready")


@update.command("custom")
@_flags(_CUSTOM)
def update_custom(command: tuple[str, ...], **values: Any) -> None:
    """Changes a custom serving job."""
    _update(_custom_run(command, values) if command else None, values)


@update.command("triton")
@_flags(_TRITON)
def update_triton(command: tuple[str, ...], **values: Any) -> None:
    """Changes a serving job of a Triton model repository."""
    _update(_triton_run(values) if values["model_repository"] else None, values)


def _custom_run(command: tuple[str, ...], values: Values) -> list[str]:
    return [f"/bin/{values['shell']}", "-c", " ".join(command)]


def _triton_run(values: Values) -> list[str]:
    models = [f"--load-model={name}" for name in values["load_model"]]
    control = ["--model-control-mode=explicit"] if models else []
    more = [f"--model-repository={values['model_repository']}", *control, *models]
    line = f"{_SERVE_TRITON} {shlex.join(more)} {_TRITON_PORTS} {values['extend_command']}"
    return ["/bin/sh", "-c", line.strip()]


def _fields(run: list[str] | None, values: Values, old: Values | None = None, ready: str = "") -> Values:
    """A version's fields in the short form."""
    fields = dict(old or {})
    simple = {
        "run": run, "image": values["image"], "devices": values["gpus"], "cpus": _amount(values["cpu"]),
        "memory": _amount(values["memory"]), "replicas": values["replicas"], "model": values["model_name"],
        "ready": _probe(values) or (ready if run is not None and not old else None),
    }  # fmt: skip
    fields |= {key: value for key, value in simple.items() if value is not None}
    if values["env"]:
        fields["env"] = fields.get("env", {}) | pairs("--env", values["env"])
    if values["selector"]:
        fields["node_selector"] = pairs("--selector", values["selector"])
    rollout = {key: _amount(values[key]) for key in ("max_surge", "max_unavailable") if values[key] is not None}
    return {key: value for key, value in fields.items() if value != ""} | (
        {"rollout": fields.get("rollout", {}) | rollout} if rollout else {}
    )


def _probe(values: Values) -> Any:
    """Arena's readiness flags: httpGet with "path: /x", or tcpSocket."""
    options = dict(text.partition(":")[::2] for text in values["readiness_probe_action_option"])
    path = options.get("path", "").strip()
    if values["readiness_probe_action"] == "httpGet" and not path:
        raise click.UsageError('--readiness-probe-action httpGet needs --readiness-probe-action-option "path: /x".')
    return {"tcpSocket": {}, "httpGet": path}.get(values["readiness_probe_action"] or "", path or None)


def _deploy(kind: str, run: list[str], port: int, values: Values, ready: str = "") -> None:
    from millpond.jobs.deployments.spec import load_deployments

    version = values["version"] or time.strftime("%Y%m%d%H%M")
    document: Values = {"name": values["name"], "kind": kind, "port": port,
                        "versions": {version: _fields(run, values, ready=ready)}}  # fmt: skip
    if values["namespace"]:
        document["namespace"] = values["namespace"]
    if values["label"]:
        document["labels"] = pairs("--label", values["label"])
    (spec,) = load_deployments(as_text(document))
    with open_deployments() as client:
        status = client.add_version(spec)
    for note in _notes(values):
        click.echo(f"Note: {note}", err=True)
    click.echo(f"The Job {spec.name} has been submitted successfully")
    click.echo(f"It serves at {status.address}")
    line = f"millpond arena serve get {spec.name} --type {kind} -n {spec.namespace}"
    click.echo(f"You can run `{line}` to check the job status")


def _update(run: list[str] | None, values: Values) -> None:
    from millpond.cli.deploy.command import update_version

    with open_deployments() as client:
        update_version(
            client, values["name"], values["namespace"], values["version"] or None,
            lambda old: _fields(run, values, old),
        )  # fmt: skip
    for note in _notes(values):
        click.echo(f"Note: {note}", err=True)
    click.echo(f"The serving job {values['name']} has been updated successfully")


def _notes(values: Values) -> list[str]:
    given = [names[0] for names, _ in _NOTED if values[names[0][2:].replace("-", "_")]]
    notes = [f"{flag} has no effect on a local cluster." for flag in given]
    return notes + [f"--data {text}: the path is taken as it stands on this machine." for text in values["data"]]


def _amount(text: str | None) -> str | float | None:
    if text is None:
        return None
    return (float(text) if "." in text else int(text)) if text.replace(".", "", 1).isdigit() else text


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
