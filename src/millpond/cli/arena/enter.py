"""Enters a pod of the chosen cluster: this process becomes `kubectl exec`.

A terminal over a WebSocket, with its window sizes and signals, is what kubectl does well and every user of a cluster
has. Called by `arena attach`.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from millpond.cli.jobs.connect import chosen_cluster


def enter_pod(namespace: str, pod: str, container: str | None, command: Sequence[str]) -> NoReturn:
    """Runs `command`, or a shell, in a pod; does not return.

    Raises:
        click.UsageError: kubectl is not on the PATH.
    """
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        raise click.UsageError("attach needs kubectl on the PATH to enter a pod.")
    choice = chosen_cluster()
    argv = ["kubectl"]
    argv += ["--kubeconfig", str(choice.kubeconfig)] if choice.kubeconfig else []
    argv += ["--context", choice.context] if choice.context else []
    argv += ["exec", "-it" if sys.stdin.isatty() else "-i", "-n", namespace, pod]
    argv += ["-c", container] if container else []
    os.execv(kubectl, [*argv, "--", *(command or ["/bin/sh"])])
