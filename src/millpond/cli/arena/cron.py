"""`millpond arena cron`: jobs that are made again and again."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from millpond.cli.arena.flags import Decorated, common_flags, tf_flags
from millpond.cli.arena.submit import submit_pytorch, submit_tf
from millpond.cli.arena.views import list_table
from millpond.cli.jobs.connect import open_jobs
from millpond.cli.jobs.tables import age, table

if TYPE_CHECKING:
    from millpond.api.job import JobStatus
    from millpond.jobs.client import JobsClient
    from millpond.jobs.clusters.kubernetes.jobs_client import KubernetesJobs


@click.group()
def cron() -> None:
    """Submits, shows and changes crons."""


def _cron_flags(command: Decorated) -> Decorated:
    policies = click.Choice(["Allow", "Forbid", "Replace"])
    for option in (
        click.option("--schedule", required=True, metavar="CRON", help="Minute hour day month weekday, in UTC."),
        click.option("--concurrency-policy", type=policies, default="Allow", help="When the last job still runs."),
        click.option("--deadline", default="", metavar="TIME", help="No jobs after that time."),
        click.option("--history-limit", type=click.IntRange(0), default=10, help="Ended jobs that are kept."),
        click.option("--suspend", is_flag=True, help="Make no jobs yet."),
    ):
        command = option(command)
    return command


def _take_cron(values: dict[str, Any]) -> dict[str, Any]:
    names = {"schedule": "schedule", "concurrency_policy": "concurrency", "deadline": "deadline",
             "history_limit": "history_limit", "suspend": "suspend"}  # fmt: skip
    fields = {ours: values.pop(theirs) for theirs, ours in names.items()}
    return values | {"cron": {name: value for name, value in fields.items() if value != ""}}


@cron.command("tfjob")
@common_flags
@tf_flags
@_cron_flags
def cron_tfjob(command: tuple[str, ...], **values: Any) -> None:
    """Submits a TensorFlow job that runs by a schedule."""
    submit_tf(command, _take_cron(values))


@cron.command("pytorchjob")
@common_flags
@_cron_flags
@click.option("--nproc-per-node", default="", help="Processes of each worker: auto, gpu, cpu or a number.")
def cron_pytorchjob(command: tuple[str, ...], **values: Any) -> None:
    """Submits a PyTorch job that runs by a schedule."""
    submit_pytorch(command, _take_cron(values))


@cron.command("list")
def cron_list() -> None:
    """Lists crons."""
    with open_jobs() as client:
        rows = []
        for job in client.jobs():
            if job.kind == "Cron":
                spec = client.spec(job.uid)
                assert spec.cron is not None
                schedule = spec.cron.schedule
                suspended = str(client.is_suspended(job)).lower()
                rows.append((job.name, spec.framework, schedule, suspended, age(time.time() - job.created_s)))
    click.echo(table(("NAME", "TYPE", "SCHEDULE", "SUSPEND", "AGE"), rows))


@cron.command("get")
@click.argument("name")
def cron_get(name: str) -> None:
    """Shows a cron and its jobs."""
    with open_jobs() as client:
        status, spec = _find_cron(client, name), client.spec(name)
        made = [job for job in client.jobs() if job.cron_name == name]
        assert spec.cron is not None
        lines = [f"Name:        {status.name}", f"Schedule:    {spec.cron.schedule}",
                 f"Concurrency: {spec.cron.concurrency.value}", f"Suspend:     {client.is_suspended(status)}", "",
                 "History:"]  # fmt: skip
    click.echo("\n".join([*lines, list_table(made, time.time())]))


@cron.command("suspend")
@click.argument("name")
def cron_suspend(name: str) -> None:
    """Makes no jobs until it is resumed."""
    with open_jobs() as client:
        click.echo(f"cron {client.suspend(name).name} suspended")


@cron.command("resume")
@click.argument("name")
def cron_resume(name: str) -> None:
    """Makes jobs again."""
    with open_jobs() as client:
        click.echo(f"cron {client.suspend(name, resume=True).name} resumed")


@cron.command("delete")
@click.argument("names", nargs=-1, required=True)
def cron_delete(names: tuple[str, ...]) -> None:
    """Deletes crons; their jobs stay."""
    with open_jobs() as client:
        for name in names:
            _find_cron(client, name)
        for status in client.delete(names):
            click.echo(f"cron {status.name} deleted")


def _find_cron(client: JobsClient | KubernetesJobs, name: str) -> JobStatus:
    status = client.get(name)
    if status.kind != "Cron":
        raise click.UsageError(f"'{name}' is a {status.kind.lower()}, not a cron.")
    return status
