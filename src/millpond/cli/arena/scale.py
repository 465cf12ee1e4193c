"""`millpond arena scalein|scaleout`: other numbers of workers for jobs that live."""

from __future__ import annotations

from typing import Any

import click

from millpond.cli.arena.flags import Decorated
from millpond.cli.jobs.connect import open_jobs

_KINDS = ("etjob", "pytorchjob", "mpijob", "tfjob")


@click.group()
def scalein() -> None:
    """Takes workers from a job; it starts again from its last checkpoint."""


@click.group()
def scaleout() -> None:
    """Gives workers to a job; it starts again from its last checkpoint."""


def _flags(command: Decorated) -> Decorated:
    for option in (
        click.option("--name", required=True, help="Name of the job."),
        click.option("-n", "--namespace", metavar="NAME", help="Namespace of the job."),
        click.option("--count", type=click.IntRange(1), default=1, show_default=True, help="How many workers."),
        click.option("-t", "--timeout", type=click.IntRange(0), default=60, show_default=True,
                     metavar="SECONDS", help="Wait so long until it runs again."),
        click.option("--retry", type=int, default=0, hidden=True),
        click.option("--script", default="", hidden=True),
        click.option("-e", "--env", multiple=True, hidden=True),
    ):  # fmt: skip
        command = option(command)
    return command


def _scale(sign: int, name: str, namespace: str | None, count: int, timeout: int, **noted: Any) -> int:
    for flag in ("script", "env", "retry"):
        if noted[flag]:
            click.echo(f"Note: --{flag} has no effect: processes start again with the new number.", err=True)
    with open_jobs() as client:
        spec = client.spec(name, namespace)
        now = client.replicas_of(name, namespace)
        status, role = client.scale(name, now + sign * count, None, spec.namespace)
        click.echo(f"{role} of {name}: {now} -> {now + sign * count}")
        if timeout and not client.wait_size(status.uid, role, now + sign * count, timeout):
            waiting = client.get(status.uid).waiting
            click.echo(f"{name} does not run with them yet. {waiting}".strip(), err=True)
            return 1
    click.echo(f"The Job {name} has been scaled successfully")
    return 0


def _add(group: click.Group, kind: str, sign: int) -> None:
    @group.command(kind, help=f"A {kind}.")
    @_flags
    def scale(**values: Any) -> int:
        return _scale(sign, **values)


for _kind in _KINDS:
    _add(scalein, _kind, -1)
    _add(scaleout, _kind, 1)
