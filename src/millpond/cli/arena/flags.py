"""Arena's flags of `submit`, as a table: name, kind of value, help. Flags that a cluster cannot heed are taken and
noted, so that a line that works with Arena works here; those with a help text work where there are pods.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

# (names, click arguments). What `submit` reads by name is in the first table.
_COMMON: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (("--name",), {"required": True, "help": "Name of the job."}),
    (("-n", "--namespace"), {"help": "Namespace of the job."}),
    (("--image",), {"default": "", "help": "Image; a local cluster runs the command as it stands."}),
    (("--gpus",), {"type": click.IntRange(0), "default": 0, "help": "Accelerators of each worker."}),
    (("--workers",), {"type": click.IntRange(0), "default": 1, "help": "Workers; of a pytorchjob with the master."}),
    (("--cpu",), {"default": "", "help": "Processors of each worker: 2, 500m."}),
    (("--memory",), {"default": "", "help": "Memory of each worker: 4Gi."}),
    (("-e", "--env"), {"multiple": True, "metavar": "K=V", "help": "A variable."}),
    (("-d", "--data"), {"multiple": True, "metavar": "NAME:PATH", "help": "A dataset (see data list)."}),
    (("--sync-mode",), {"type": click.Choice(["git", "rsync", "hdfs"]), "help": "How code is fetched."}),
    (("--sync-source",), {"default": "", "help": "Where code comes from."}),
    (("--working-dir",), {"default": "", "help": "Where the command runs."}),
    (("--tensorboard",), {"is_flag": True, "help": "Run a TensorBoard beside the job."}),
    (("--logdir",), {"default": "/training_logs", "help": "What TensorBoard shows."}),
    (("--selector",), {"multiple": True, "metavar": "K=V", "help": "A label that nodes must have."}),
    (("-a", "--annotation"), {"multiple": True, "metavar": "K=V", "help": "An annotation."}),
    (("-l", "--label"), {"multiple": True, "metavar": "K=V", "help": "A label."}),
    (("-p", "--priority"), {"default": "", "help": "A number, or the name of a class."}),
    (("--clean-task-policy",), {"type": click.Choice(["None", "Running", "All"]), "help": "What goes at the end."}),
    (("--running-timeout",), {"default": "", "metavar": "DURATION", "help": "The longest run."}),
    (("--ttl-after-finished",), {"default": "", "metavar": "DURATION", "help": "When an ended job goes."}),
    (("--device",), {"multiple": True, "metavar": "NAME=N", "help": "Accelerators by name: amd.com/gpu=1."}),
    (("--shell",), {"default": "sh", "type": click.Choice(["sh", "bash"]), "help": "What runs the command."}),
    (
        ("--job-restart-policy",),
        {"type": click.Choice(["Never", "OnFailure", "Always", "ExitCode"]), "help": "What an ended worker means."},
    ),
    (("--job-backoff-limit", "--retry"), {"type": click.IntRange(0), "help": "Restarts before the job fails."}),
    (("--queue",), {"default": "", "help": "The tenant whose quota counts."}),
    (("--spot-instance",), {"is_flag": True, "help": "Workers may run on capacity that can be taken away."}),
    (("--success-policy",), {"default": "", "help": "AllWorkers: every worker must succeed."}),
)
_PULL = ("Always", "IfNotPresent", "Never")
_NOTED: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (("--data-dir",), {"multiple": True, "metavar": "HOST[:PATH]", "help": "A directory of the node."}),
    (("--data-subpath-expr",), {"multiple": True, "metavar": "NAME:EXPR", "help": "What of a dataset is mounted."}),
    (("--temp-dir",), {"multiple": True, "metavar": "NAME:PATH", "help": "An empty directory."}),
    (("--config-file",), {"multiple": True}),
    (("--sync-image",), {}),
    (("--tensorboard-image",), {}),
    (("--toleration",), {"multiple": True, "metavar": "KEY[=VALUE][:EFFECT]", "help": "A taint to bear; all."}),
    (("--scheduler",), {}),
    (("--rdma",), {"is_flag": True, "help": "Ask for an RDMA card."}),
    (("--starting-timeout",), {}),
    (("--image-pull-secret",), {"multiple": True, "metavar": "NAME", "help": "A secret for the image."}),
    (("--image-pull-policy",), {"type": click.Choice(_PULL), "help": "When the image is pulled."}),
    (("--share-memory",), {"metavar": "SIZE", "help": "Shared memory: 2Gi."}),
    (("--env-from-secret",), {"multiple": True, "metavar": "NAME", "help": "Variables from a secret."}),
    (("--max-wait-time",), {"type": int}),
    (("--affinity-policy",), {}),
    (("--affinity-constraint",), {}),
    (("--security-context",), {"multiple": True}),
)
_ALWAYS = (("--gang",), {"is_flag": True, "help": "Start whole or not at all; here every job does."})
_TF_ROLES = ("ps", "worker", "chief", "evaluator")
_ROLE_NOTED = ("cpu-limit", "memory-limit")

Decorated = Callable[..., Any]


def common_flags(command: Decorated) -> Decorated:
    """Flags of every kind of job, and the command as what is left."""
    noted = [(names, {"hidden": "help" not in options} | options) for names, options in _NOTED]
    for names, options in reversed((*_COMMON, _ALWAYS, *noted)):
        command = click.option(*names, **options)(command)
    return click.argument("command", nargs=-1, type=click.UNPROCESSED)(command)


def tf_flags(command: Decorated) -> Decorated:
    """Flags of a tfjob: how many of each role, and what each needs."""
    table: list[tuple[tuple[str, ...], dict[str, Any]]] = [
        (("--ps",), {"type": click.IntRange(0), "default": 0, "help": "Parameter servers."}),
        (("--ps-gpus",), {"type": click.IntRange(0), "default": 0, "help": "Accelerators of each parameter server."}),
        (("--chief",), {"is_flag": True, "help": "Have a chief."}),
        (("--evaluator",), {"is_flag": True, "help": "Have an evaluator."}),
        (("--role-sequence",), {"default": "", "help": 'Start order: "PS,Worker,Chief,Evaluator" or "p,w,c,e".'}),
    ]
    for role in _TF_ROLES:
        table += [
            ((f"--{role}-cpu",), {"default": "", "help": f"Processors of a {role}."}),
            ((f"--{role}-memory",), {"default": "", "help": f"Memory of a {role}."}),
            ((f"--{role}-image",), {"default": "", "help": f"Image of a {role}."}),
            ((f"--{role}-port",), {"type": click.IntRange(1, 65535), "help": f"Port of a {role}."}),
            ((f"--{role}-selector",), {"multiple": True, "metavar": "K=V", "help": f"A label of nodes for a {role}."}),
        ]
        table += [((f"--{role}-{name}",), {"hidden": True}) for name in _ROLE_NOTED]
    for names, options in reversed(table):
        command = click.option(*names, **options)(command)
    return command


def mpi_flags(command: Decorated) -> Decorated:
    """Flags of an mpijob."""
    table: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
        (("--gputopology",), {"is_flag": True, "help": "Place by the wiring; here every job is."}),
        (("--mounts-on-launcher",), {"is_flag": True, "hidden": True}),
        (("--launcher-selector",), {"multiple": True, "metavar": "K=V", "help": "A label of nodes for the launcher."}),
        (("--launcher-annotation",), {"multiple": True, "hidden": True}),
    )
    for names, options in reversed(table):
        command = click.option(*names, **options)(command)
    return command


def noted_flags(values: dict[str, Any]) -> list[str]:
    """Flags that were given and have no effect here."""
    names = [names[-1] for names, _ in _NOTED]
    names += [f"--{role}-{name}" for role in _TF_ROLES for name in _ROLE_NOTED]
    names += ["--mounts-on-launcher", "--launcher-annotation"]
    return [name for name in names if values.get(name[2:].replace("-", "_"))]
