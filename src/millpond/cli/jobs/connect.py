"""Opens the jobs a command is about: those of the data directory, or those of a Kubernetes cluster.

Which of the two, a group of commands says once (`choose_cluster`) and its commands ask for (`open_jobs`). What only the
local cluster has asks for `open_local_jobs`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from millpond.config import env

if TYPE_CHECKING:
    from millpond.jobs.client import JobsClient
    from millpond.jobs.clusters.kubernetes.client import KubernetesApi
    from millpond.jobs.clusters.kubernetes.jobs_client import KubernetesJobs

Decorated = Callable[..., Any]
_CHOICE = "millpond.jobs.cluster"
_CLUSTER_FLAGS: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (("--cluster",), {"type": click.Choice(["local", "kubernetes"]), "default": "local", "show_default": True,
                      "help": "Where they are."}),
    (("--kubeconfig",), {"type": click.Path(exists=True, dir_okay=False, path_type=Path), "metavar": "FILE",
                         "help": "How to reach Kubernetes; means --cluster kubernetes."}),
    (("--context",), {"metavar": "NAME", "help": "A context of the kubeconfig."}),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ClusterChoice:
    """Which cluster: `kubernetes` with a kubeconfig and a context, or `local`."""

    name: str = "local"
    kubeconfig: Path | None = None
    context: str | None = None
    namespace: str = "default"

    @property
    def is_local(self) -> bool:
        """Whether it is this machine."""
        return self.name == "local"


def jobs_root() -> Path:
    """The jobs directory."""
    return env.data_dir() / "jobs"


def choose_cluster(choice: ClusterChoice) -> None:
    """Says for the commands below the current one which cluster they are about."""
    click.get_current_context().meta[_CHOICE] = choice


def chosen_cluster() -> ClusterChoice:
    """The cluster that was chosen."""
    context = click.get_current_context(silent=True)
    found = None if context is None else context.meta.get(_CHOICE)
    return found if isinstance(found, ClusterChoice) else ClusterChoice()


@contextmanager
def open_jobs() -> Iterator[JobsClient | KubernetesJobs]:
    """The jobs of the chosen cluster."""
    if chosen_cluster().is_local:
        with open_local_jobs() as local:
            yield local
        return
    with open_kubernetes_jobs() as client:
        yield client


@contextmanager
def open_kubernetes_jobs() -> Iterator[KubernetesJobs]:
    """The jobs of the chosen cluster, which is not this machine."""
    client = _open_kubernetes(chosen_cluster())
    try:
        yield client
    finally:
        client.close()


@contextmanager
def open_local_jobs() -> Iterator[JobsClient]:
    """The jobs of this machine; those it submits run where the command was typed."""
    if not chosen_cluster().is_local:
        raise click.UsageError("This command works on the local cluster alone.")
    from millpond.jobs.client import JobsClient

    client = JobsClient(jobs_root(), env.job_environment(), str(Path.cwd()))
    try:
        client.revive()
        yield client
    finally:
        client.close()


def _open_kubernetes(choice: ClusterChoice) -> KubernetesJobs:
    connect = connection(choice)
    from millpond.jobs.clusters.kubernetes.jobs_client import KubernetesJobs

    return KubernetesJobs(connect, choice.namespace)


def connection(choice: ClusterChoice) -> Callable[[], Awaitable[KubernetesApi]]:
    """Opens connections to a cluster that is not this machine."""
    try:
        from millpond.jobs.clusters.kubernetes.client import KubernetesApi
    except ModuleNotFoundError:
        raise click.UsageError("Kubernetes needs its client: pip install 'millpond[kubernetes]'.") from None
    path = choice.kubeconfig or Path("~/.kube/config").expanduser()

    async def connect() -> KubernetesApi:
        return await KubernetesApi.connect(path, choice.context)

    return connect


def cluster_flags(command: Decorated) -> Decorated:
    """Flags that say which cluster a group of commands is about."""
    for names, options in reversed(_CLUSTER_FLAGS):
        command = click.option(*names, **options)(command)
    return command


def choose(cluster: str, kubeconfig: Path | None, context: str | None) -> None:
    """Chooses what those flags say."""
    name = "kubernetes" if kubeconfig is not None or context is not None else cluster
    choose_cluster(ClusterChoice(name, kubeconfig, context))
