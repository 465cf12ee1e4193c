"""`millpond jobs`: submit, list, get, logs, explain, queue, delete, prune, replay, controller."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from millpond.cli.jobs.connect import choose, cluster_flags, jobs_root, open_jobs, open_local_jobs
from millpond.cli.jobs.tables import age, dump, table
from millpond.config import env

if TYPE_CHECKING:
    from millpond.api.job import JobStatus

_namespace = click.option("-n", "--namespace", metavar="NAME", help="Jobs of this namespace alone.")
_output = click.option("-o", "--output", type=click.Choice(["json", "yaml", "wide"]), help="Another form of output.")


@click.group()
@cluster_flags
def jobs(cluster: str, kubeconfig: Path | None, context: str | None) -> None:
    """Runs jobs of processes: whole gangs, in order, within quotas.

    The first submit starts a controller in the background; it ends when nothing is left to do. What the machine offers
    and the tenants' quotas stand in cluster.yaml in the jobs directory. With --cluster kubernetes, submit, list, get,
    logs, explain, queue, delete and prune are about the jobs of a cluster with our operator.
    """
    choose(cluster, kubeconfig, context)


@jobs.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(allow_dash=True))
@click.option("--dry-run", is_flag=True, help="Only check, and show what would run.")
@click.option("--wait", is_flag=True, help="Wait until all of them have ended; exit code 1 when one failed.")
@click.option("-o", "--output", type=click.Choice(["json", "yaml"]), help="Print the jobs as documents.")
def submit(files: tuple[str, ...], dry_run: bool, wait: bool, output: str | None) -> int:
    """Submits the jobs of YAML files (ours or KubeDL's), all or none; - reads standard input."""
    import msgspec

    from millpond.jobs.spec import load_jobs

    texts = [read_file(file) for file in files]
    if dry_run:
        specs = [spec for text in texts for spec in load_jobs(text)]
        click.echo(dump([msgspec.to_builtins(spec) for spec in specs], output or "yaml"))
        return 0
    with open_jobs() as client:
        made = client.submit_texts(texts)
        if output is not None:
            click.echo(dump([msgspec.to_builtins(status) for status in made], output))
        for status in made if output is None else ():
            click.echo(f"{status.kind} {status.name} was submitted; `millpond jobs get {status.name}` shows it.")
            for note in status.notes:
                click.echo(f"Note: {note}", err=True)
        if not wait:
            return 0
        ends = [client.wait(status.uid, lambda now: now.phase.is_final, float("inf")) for status in made]
        for end in ends:
            click.echo(f"{end.name}: {end.phase.value}. {end.conditions[-1].message}", err=True)
        return int(any(end.phase.value != "Succeeded" for end in ends))


@jobs.command("list")
@_namespace
@click.option("-a", "--all", "with_deleted", is_flag=True, help="Also jobs that were deleted.")
@_output
def list_jobs(namespace: str | None, with_deleted: bool, output: str | None) -> None:
    """Lists jobs, newest first."""
    import msgspec

    with open_jobs() as client:
        found = client.jobs(namespace, with_deleted=with_deleted)
    if output in ("json", "yaml"):
        click.echo(dump([msgspec.to_builtins(status) for status in found], output))
        return
    head = ["NAME", "KIND", "STATE", "READY", "RESTARTS", "AGE"]
    wide = ["NAMESPACE", "TENANT", "PRIORITY", "DEVICES", "WAITING"] if output == "wide" else []
    click.echo(table([*head, *wide], [_row(status, bool(wide)) for status in found]))


@jobs.command()
@click.argument("name")
@_namespace
@_output
def get(name: str, namespace: str | None, output: str | None) -> None:
    """Shows a job: state, conditions, replicas, events."""
    import msgspec

    with open_jobs() as client:
        status = client.get(name, namespace)
        events = client.events(status)
    if output in ("json", "yaml"):
        document = msgspec.to_builtins(status) | {"events": msgspec.to_builtins(events)}
        click.echo(dump(document, output))
        return
    now_s = time.time()
    rows = [
        ("Name", status.name), ("Namespace", status.namespace), ("Kind", status.kind), ("State", _state(status)),
        ("Tenant", status.tenant), ("Priority", str(status.priority)), ("Age", age(now_s - status.created_s)),
        ("Waiting", status.waiting), ("TensorBoard", status.tensorboard_url), ("Model version", status.model_version),
    ]  # fmt: skip
    click.echo("\n".join(f"{label + ':':<15}{value}" for label, value in rows if value))
    heads = ("REPLICA", "PHASE", "RESTARTS", "CODE", "NODE", "DEVICES", "PID")
    click.echo("\n" + table(heads, [(
        replica.name, replica.phase.value, replica.restarts,
        "-" if replica.exit_code is None else replica.exit_code, replica.node or "-",
        ",".join(replica.device_ids) or "-", replica.pid or "-",
    ) for replica in status.replicas]))  # fmt: skip
    click.echo("\n" + table(("EVENT", "AGE", "MESSAGE"), [(e.reason, age(now_s - e.at_s), e.message) for e in events]))


@jobs.command()
@click.argument("name")
@click.option("-i", "--instance", metavar="NAME", help="A replica; without it the chief.")
@click.option("-f", "--follow", is_flag=True, help="Go on until the replica has ended.")
@click.option("-t", "--tail", type=click.IntRange(min=0), metavar="N", help="Only the last N lines.")
@_namespace
def logs(name: str, instance: str | None, follow: bool, tail: int | None, namespace: str | None) -> None:
    """Prints what a replica wrote, of all its starts."""
    print_log(name, instance, follow, tail, namespace)


@jobs.command()
@click.argument("name")
@_namespace
@click.option("-o", "--output", type=click.Choice(["json", "yaml"]), help="Print the scheduler's object.")
def explain(name: str, namespace: str | None, output: str | None) -> None:
    """Says why a job waits: which quota, role, devices or links; who holds them; its place in the queue."""
    with open_jobs() as client:
        status = client.get(name, namespace)
    if output is not None:
        click.echo(dump(status.explanation, output))
        return
    click.echo(f"{status.name}: {_state(status)}. {status.waiting or status.conditions[-1].message}")
    shortages = status.explanation.get("shortages")
    if isinstance(shortages, list) and shortages:
        rows = [(s["kind"], s["where"], f"{s['asked']:g}", f"{s['available']:g}", s["detail"]) for s in shortages]
        click.echo("\n" + table(("SHORT OF", "WHERE", "ASKED", "AVAILABLE", "WHY"), rows))
    holders = status.explanation.get("holders")
    if isinstance(holders, list) and holders:
        click.echo(f"\nHeld by: {', '.join(map(str, holders))}")
    start_s = status.explanation.get("estimated_start_s")
    if isinstance(start_s, int | float):
        click.echo(f"Estimated start: in {age(start_s - time.time())}")


@jobs.command()
@_output
def queue(output: str | None) -> None:
    """Lists the jobs that wait, in the order they are served."""
    import msgspec

    with open_jobs() as client:
        found = client.queue()
    if output in ("json", "yaml"):
        click.echo(dump([msgspec.to_builtins(status) for status in found], output))
        return
    now_s = time.time()
    rows = [
        (status.explanation.get("position") or "-", status.name, status.tenant, status.priority,
         age(now_s - status.created_s), status.waiting)
        for status in found
    ]  # fmt: skip
    click.echo(table(("PLACE", "NAME", "TENANT", "PRIORITY", "WAITS", "WHY"), rows))


@jobs.command()
def versions() -> None:
    """Lists the versions of models that jobs left behind."""
    with open_local_jobs() as client:
        found = client.model_versions()
    now_s = time.time()
    rows = [(item.model, item.name, item.path, age(now_s - item.created_s)) for item in found]
    click.echo(table(("MODEL", "VERSION", "PATH", "AGE"), rows))


@jobs.command()
@click.argument("name")
@click.argument("replicas", type=click.IntRange(1))
@click.option("-r", "--role", metavar="ROLE", help="The role; without it the workers.")
@_namespace
@click.option("--timeout", type=float, default=0.0, metavar="SECONDS", help="Wait so long until it runs again.")
def scale(name: str, replicas: int, role: str | None, namespace: str | None, timeout: float) -> int:
    """Gives a role another number of replicas; the job starts again with them, from its last checkpoint."""
    with open_jobs() as client:
        status, scaled = client.scale(name, replicas, role, namespace)
        click.echo(f"{status.name} starts again with {replicas} replicas of {scaled}.")
        return 0 if client.wait_size(status.uid, scaled, replicas, timeout) or not timeout else 1


@jobs.command()
@click.argument("names", nargs=-1, required=True)
@_namespace
def delete(names: tuple[str, ...], namespace: str | None) -> None:
    """Stops jobs and deletes their logs; the record stays (`list --all`)."""
    with open_jobs() as client:
        for status in client.delete(names, namespace):
            click.echo(f"{status.name} was deleted." if status.deleted_s else f"{status.name} is still stopping.")


@jobs.command()
@click.option("-s", "--since", default="0s", metavar="DURATION", help="Ended so long ago: 5m, 1h, 2d.")
@_namespace
def prune(since: str, namespace: str | None) -> None:
    """Deletes jobs that have ended."""
    from millpond.jobs.quantities import read_duration
    from millpond.jobs.spec_document import Reader

    with open_jobs() as client:
        for status in client.prune(read_duration(Reader(since, "--since")), namespace):
            click.echo(f"{status.name} was deleted.")


@jobs.command()
@click.argument("log", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def replay(log: Path) -> None:
    """Replays a log of decisions (decisions/*.jsonl) and checks that the scheduler decides the same again."""
    from millpond.jobs.scheduling.log import replay as replay_log

    with open(log, "rb") as lines:
        stats = replay_log(lines)
    click.echo(f"{stats.events} events, {stats.steps} steps, {stats.decisions} decisions: all equal.")


@jobs.command()
@click.option("--slots", type=click.FloatRange(min=0.1), help="Processors that jobs can ask for.")
@click.option("--devices", type=click.IntRange(min=0), help="Accelerators that jobs can ask for.")
def controller(slots: float | None, devices: int | None) -> None:
    """Runs the controller in the foreground; it is started in the background when it is needed."""
    from millpond.jobs.service import JobsPlace, ServiceOptions, run_controller

    run_controller(JobsPlace(jobs_root()), ServiceOptions(slots, devices), click.echo)


@jobs.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--port", type=click.IntRange(0, 65535), default=8470, show_default=True, help="0 takes a free one.")
def serve(host: str, port: int) -> None:
    """Serves the same verbs over HTTP, to callers who show the token; /openapi.json describes them."""
    import socket

    import uvicorn

    from millpond.jobs.client import JobsClient
    from millpond.jobs.deployments.client import DeploymentsClient
    from millpond.jobs.deployments.rest import verbs_with
    from millpond.jobs.rest import make_app, read_token

    root, environment = jobs_root(), env.job_environment()
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    here = str(Path.cwd())
    deployments = verbs_with(lambda: DeploymentsClient(root, environment, here))
    app = make_app(lambda: JobsClient(root, environment, here), read_token(root / "token"), deployments)
    with socket.create_server((host, port)) as listener:
        click.echo(f"Jobs are served at http://{host}:{listener.getsockname()[1]}; the token is in {root / 'token'}")
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


def print_log(name: str, instance: str | None, follow: bool, tail: int | None, namespace: str | None) -> None:
    """Prints a replica's log as bytes, as it comes."""
    with open_jobs() as client:
        status = client.get(name, namespace)
        replica = client.find_replica(status, instance)
        for piece in client.logs(status, replica, follow=follow, tail=tail):
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
        if replica.started_s is None and status.waiting and not follow:
            click.echo(f"{replica.name} has not started. {status.waiting}", err=True)


def read_file(file: str) -> str:
    """The text of a file; - is standard input."""
    from millpond.api.job import SpecError

    try:
        return sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise SpecError(f"{file} is not a text in UTF-8.") from None
    except OSError as error:
        raise SpecError(f"{file} cannot be read: {error.strerror}.") from None


def _state(status: JobStatus) -> str:
    if status.deleted_s is not None:
        return f"{status.phase.value} (deleted)"
    return f"{status.phase.value} (stopping)" if status.is_stopping else status.phase.value


def _row(status: JobStatus, is_wide: bool) -> list[object]:
    ready = sum(replica.phase.value in ("Running", "Succeeded") for replica in status.replicas)
    row: list[object] = [
        status.name, status.kind, _state(status), f"{ready}/{len(status.replicas)}", status.restarts,
        age(time.time() - status.created_s),
    ]  # fmt: skip
    wide = [status.namespace, status.tenant, status.priority, status.requested_devices, status.waiting or "-"]
    return [*row, *wide] if is_wide else row
