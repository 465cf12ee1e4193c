"""`millpond arena`: list, get, logs, attach, top, delete, prune, data, whoami; submit and cron stand beside it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from millpond.cli.arena.cron import cron
from millpond.cli.arena.enter import enter_pod
from millpond.cli.arena.scale import scalein, scaleout
from millpond.cli.arena.serve import SPLIT_NAMES, serve, update
from millpond.cli.arena.submit import submit
from millpond.cli.arena.views import get_text, job_document, list_table, node_details, top_jobs, top_nodes, trainer
from millpond.cli.jobs.command import print_log
from millpond.cli.jobs.connect import (
    ClusterChoice,
    choose_cluster,
    chosen_cluster,
    jobs_root,
    open_jobs,
    open_kubernetes_jobs,
    open_local_jobs,
)
from millpond.cli.jobs.tables import age, dump, table

if TYPE_CHECKING:
    from millpond.api.job import JobStatus

_namespace = click.option("-n", "--namespace", metavar="NAME", help="Namespace of the job.")
_type = click.option("-T", "--type", "kind", metavar="TYPE", help="Kind of job: pytorchjob, py, tf, mpi...")
_output = click.option("-o", "--output", type=click.Choice(["json", "yaml", "wide"]), help="Another form of output.")


_NO_TRAINING = ("Cron", "Server")


@click.group()
@click.option("-n", "--namespace", metavar="NAME", hidden=True)
@click.option("--config", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
              help="A kubeconfig: the commands are about that cluster.")
@click.option("--loglevel", hidden=True)
@click.option("--arena-namespace", hidden=True)
@click.pass_context
def arena(
    context: click.Context, namespace: str | None, config: Path | None, loglevel: str | None,
    arena_namespace: str | None,
) -> None:
    """Runs jobs in Arena's words; lines written for `arena` work here."""
    if config is not None:
        choose_cluster(ClusterChoice("kubernetes", config, namespace=namespace or "default"))
    if namespace is not None:  # Arena takes -n before and after the command
        names = ("list", "get", "logs", "attach", "delete", "prune")
        defaults = {name: {"namespace": namespace} for name in names}
        kinds = {name: {"namespace": namespace} for name in submit.commands}
        servings: dict[str, Any] = {name: {"namespace": namespace} for name in serve.commands if name != "update"}
        servings |= {key: {"namespace": namespace} for key in SPLIT_NAMES}
        servings["update"] = {name: {"namespace": namespace} for name in update.commands}
        context.default_map = {**defaults, "submit": kinds, "serve": servings}


arena.add_command(submit)
arena.add_command(cron)
arena.add_command(serve)
arena.add_command(scalein)
arena.add_command(scaleout)


@arena.command("list")
@_namespace
@click.option("-A", "--all-namespaces", is_flag=True, help="Jobs of every namespace.")
@_type
@_output
def list_jobs(namespace: str | None, all_namespaces: bool, kind: str | None, output: str | None) -> None:
    """Lists training jobs."""
    with open_jobs() as client:
        found = client.jobs(None if all_namespaces else namespace)
    found = [job for job in found if job.kind not in _NO_TRAINING and _is_kind(job, kind)]
    now_s = time.time()
    if output in ("json", "yaml"):
        click.echo(dump([job_document(job, now_s) for job in found], output))
    else:
        click.echo(list_table(found, now_s, with_namespace=all_namespaces))


@arena.command()
@click.argument("name")
@_namespace
@_type
@click.option("-e", "--events", is_flag=True, help="Also what happened.")
@click.option("-g", "--gpus", is_flag=True, help="Also the accelerators.")
@_output
def get(name: str, namespace: str | None, kind: str | None, events: bool, gpus: bool, output: str | None) -> None:
    """Shows a training job and its instances."""
    with open_jobs() as client:
        job = client.get(name, namespace)
        _check_kind(job, kind)
        seen = client.events(job) if events else []
    now_s = time.time()
    if output in ("json", "yaml"):
        click.echo(dump(job_document(job, now_s), output))
    else:
        click.echo(get_text(job, now_s, seen, with_gpus=gpus))


@arena.command()
@click.argument("name")
@_namespace
@_type
@click.option("-i", "--instance", metavar="NAME", help="An instance; without it the chief.")
@click.option("-f", "--follow", is_flag=True, help="Go on until the instance has ended.")
@click.option("-t", "--tail", type=int, default=-1, metavar="N", help="Only the last N lines; -1 all.")
@click.option("-c", "--container", hidden=True)
@click.option("--since", hidden=True)
@click.option("--since-time", hidden=True)
@click.option("--timestamps", is_flag=True, hidden=True)
def logs(
    name: str, namespace: str | None, kind: str | None, instance: str | None, follow: bool, tail: int, **noted: object
) -> None:
    """Prints what an instance wrote."""
    for flag in [key for key, value in noted.items() if value]:
        click.echo(f"Note: --{flag.replace('_', '-')} has no effect here.", err=True)
    print_log(name, instance, follow, None if tail < 0 else tail, namespace)


@arena.command(context_settings={"ignore_unknown_options": True})
@click.argument("name")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@_namespace
@_type
@click.option("-i", "--instance", metavar="NAME", help="An instance; without it the chief.")
@click.option("-c", "--container", metavar="NAME", help="A container of the pod, on Kubernetes.")
def attach(
    name: str, command: tuple[str, ...], namespace: str | None, kind: str | None, instance: str | None,
    container: str | None,
) -> None:  # fmt: skip
    """Opens a shell, or runs COMMAND, with an instance's directory and variables; on Kubernetes in its pod."""
    if not chosen_cluster().is_local:
        with open_kubernetes_jobs() as pods:
            job = pods.get(name, namespace)
            _check_kind(job, kind)
            enter_pod(job.namespace, pods.find_replica(job, instance).name, container, command)
    with open_local_jobs() as client:
        status = client.get(name, namespace)
        path = client.run_path(status, client.find_replica(status, instance))
    run = json.loads(path.read_text(encoding="utf-8"))
    argv = list(command) or [run["env"].get("SHELL", "/bin/sh")]
    os.chdir(run["working_dir"])
    os.execvpe(argv[0], argv, run["env"])


@arena.command()
@click.argument("names", nargs=-1, required=True)
@_namespace
@_type
def delete(names: tuple[str, ...], namespace: str | None, kind: str | None) -> None:
    """Deletes training jobs."""
    with open_jobs() as client:
        for name in names:
            _check_kind(client.get(name, namespace), kind)
        for status in client.delete(names, namespace):
            click.echo(f"The training job {status.name} has been deleted successfully")


@arena.command()
@click.option("-s", "--since", default="168h", metavar="DURATION", help="Ended so long ago: 5m, 1h.")
@click.option("-A", "--all-namespaces", is_flag=True, help="Jobs of every namespace.")
@_namespace
def prune(since: str, all_namespaces: bool, namespace: str | None) -> None:
    """Deletes training jobs that have ended."""
    from millpond.jobs.quantities import read_duration
    from millpond.jobs.spec_document import Reader

    with open_jobs() as client:
        gone = client.prune(read_duration(Reader(since, "--since")), None if all_namespaces else namespace)
    for status in gone:
        click.echo(f"The training job {status.name} has been deleted successfully")


@arena.group()
def top() -> None:
    """Shows what nodes and jobs hold."""


@top.command("node")
@click.argument("names", nargs=-1)
@click.option("-d", "--details", is_flag=True, help="A block for each node.")
@click.option("-m", "--mode", hidden=True)
@click.option("-o", "--output", type=click.Choice(["json", "yaml", "wide"]), help="Another form of output.")
def top_node(names: tuple[str, ...], details: bool, mode: str | None, output: str | None) -> None:
    """Shows nodes and their accelerators."""
    import msgspec

    from millpond.jobs.service import JobsPlace, ensure_controller

    with open_jobs() as client:
        if chosen_cluster().is_local and not client.nodes():
            ensure_controller(JobsPlace(jobs_root()))
            _until(lambda: bool(client.nodes()))
        found = [node for node in client.nodes() if not names or node.name in names]
    if output in ("json", "yaml"):
        click.echo(dump([msgspec.to_builtins(node) for node in found], output))
    else:
        click.echo(node_details(found) if details else top_nodes(found))


@top.command("job")
@click.argument("names", nargs=-1)
@_namespace
@click.option("-A", "--all-namespaces", is_flag=True, help="Jobs of every namespace.")
@_type
@_output
def top_job(
    names: tuple[str, ...], namespace: str | None, all_namespaces: bool, kind: str | None, output: str | None
) -> None:
    """Shows jobs that wait or run and what they hold."""
    with open_jobs() as client:
        found = client.jobs(None if all_namespaces else namespace)
    found = [job for job in found if _is_kind(job, kind) and not job.phase.is_final and job.kind not in _NO_TRAINING]
    found = [job for job in found if not names or job.name in names]
    now_s = time.time()
    if output in ("json", "yaml"):
        click.echo(dump([job_document(job, now_s) for job in found], output))
    else:
        click.echo(top_jobs(found, now_s))


@arena.group()
def data() -> None:
    """Shows datasets."""


@data.command("list")
@_namespace
def data_list(namespace: str | None) -> None:
    """Lists the directories that cluster.yaml declares under `data`; on Kubernetes the volume claims."""
    if not chosen_cluster().is_local:
        with open_kubernetes_jobs() as client:
            claims = client.claims(namespace)
        now_s = time.time()
        rows = [(one.name, one.access, one.description, one.owner, age(now_s - one.created_s)) for one in claims]
        click.echo(table(("NAME", "ACCESSMODE", "DESCRIPTION", "OWNER", "AGE"), rows))
        return
    from millpond.jobs.cluster_file import read_data

    path = jobs_root() / "cluster.yaml"
    found = [(item.name, "ReadWriteMany", item.description, item.path) for item in read_data(path)]
    click.echo(table(("NAME", "ACCESSMODE", "DESCRIPTION", "PATH"), found))
    if not found:
        click.echo(f"No datasets are declared; write them under `data` in {path}.", err=True)


@arena.command()
def whoami() -> None:
    """Shows who submits, and to where."""
    import getpass

    chosen = chosen_cluster()
    where = f"local ({jobs_root()})" if chosen.is_local else f"{chosen.name} ({chosen.kubeconfig})"
    click.echo(f"User:      {getpass.getuser()}\nNamespace: {chosen.namespace}\nCluster:   {where}")


def _is_kind(job: JobStatus, kind: str | None) -> bool:
    from millpond.jobs.frameworks import find_framework

    if kind is None:
        return True
    framework = find_framework(kind)
    return (framework is not None and framework.name == job.framework) or kind.casefold() == trainer(job)


def _check_kind(job: JobStatus, kind: str | None) -> None:
    if not _is_kind(job, kind):
        raise click.UsageError(f"{job.name} is a {trainer(job)}, not a {kind}.")


def _until(is_so: object, timeout_s: float = 10.0) -> None:
    assert callable(is_so)
    deadline = time.monotonic() + timeout_s
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.05)
