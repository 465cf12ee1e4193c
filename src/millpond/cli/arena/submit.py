"""`millpond arena submit KIND`: Arena's flags become our short form of a job, which the loader then checks.

One function for all kinds; a kind adds its roles. Nothing is created when the loader finds an error.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click

from millpond.cli.arena.flags import common_flags, mpi_flags, noted_flags, tf_flags
from millpond.cli.arena.pods import USED, pod_template
from millpond.cli.jobs.connect import chosen_cluster, open_jobs

Values = dict[str, Any]
_SEQUENCE = {"p": "ps", "w": "worker", "c": "chief", "e": "evaluator"}


@click.group()
def submit() -> None:
    """Submits a job: KIND [flags] "command"."""


@submit.command("pytorchjob")
@common_flags
@click.option("--nproc-per-node", default="", help="Processes of each worker: auto, gpu, cpu or a number.")
def pytorchjob(command: tuple[str, ...], **values: Any) -> None:
    """A PyTorch job; --workers counts the master."""
    submit_pytorch(command, values)


def submit_pytorch(command: tuple[str, ...], values: Values) -> None:
    """Submits a PyTorch job, or with `values["cron"]` a cron of them."""
    roles: Values = {"master": {}}
    if values["workers"] > 1:
        roles["worker"] = {"replicas": values["workers"] - 1}
    processes = values["nproc_per_node"]
    options = {"nproc_per_node": int(processes) if processes.isdigit() else processes} if processes else {}
    _submit("pytorch", roles, command, values, options=options)


@submit.command("tfjob")
@common_flags
@tf_flags
def tfjob(command: tuple[str, ...], **values: Any) -> None:
    """A TensorFlow job: parameter servers, workers, chief, evaluator."""
    submit_tf(command, values)


def submit_tf(command: tuple[str, ...], values: Values) -> None:
    """Submits a TensorFlow job, or with `values["cron"]` a cron of them."""
    counts = {"ps": values["ps"], "worker": values["workers"], "chief": values["chief"],
              "evaluator": values["evaluator"]}  # fmt: skip
    roles: Values = {}
    for name, count in counts.items():
        if count:
            given = {key: values[f"{name}_{key}"] for key in ("cpu", "memory", "image", "port")}
            role = {"cpus": given["cpu"], "memory": given["memory"], "image": given["image"], "port": given["port"]}
            roles[name] = {"replicas": int(count)} | {key: value for key, value in role.items() if value}
    if "ps" in roles:
        roles["ps"]["devices"] = values["ps_gpus"]
    if "evaluator" in roles:
        roles["evaluator"]["devices"] = 0
    _order(roles, values["role_sequence"])
    _submit("tf", roles, command, values)


@submit.command("mpijob")
@common_flags
@mpi_flags
def mpijob(command: tuple[str, ...], **values: Any) -> None:
    """An MPI job; the command runs on the launcher."""
    _submit_mpi(command, values)


@submit.command("etjob")
@common_flags
@click.option("--min-workers", type=click.IntRange(1), default=1, help="It starts with so many.")
@click.option("--max-workers", type=click.IntRange(1), help="It can be scaled out to so many.")
def etjob(command: tuple[str, ...], **values: Any) -> None:
    """An elastic job over MPI: `scalein` and `scaleout` change its workers while it lives."""
    least = min(values["min_workers"], values["workers"])
    bounds = {"min_replicas": least, "max_replicas": values["max_workers"]}
    _submit_mpi(command, values, {key: value for key, value in bounds.items() if value is not None})


@submit.command("horovodjob")
@common_flags
def horovodjob(command: tuple[str, ...], **values: Any) -> None:
    """A Horovod job over MPI; the command runs on the launcher."""
    _submit_mpi(command, values)


@submit.command("deepspeedjob")
@common_flags
def deepspeedjob(command: tuple[str, ...], **values: Any) -> None:
    """A DeepSpeed job over MPI: `deepspeed --launcher openmpi --hostfile $OMPI_MCA_orte_default_hostfile ...`."""
    _submit_mpi(command, values)


@submit.command("volcanojob")
@common_flags
@click.option("--minAvailable", "min_available", type=click.IntRange(1), help="It may start with so many.")
@click.option("--taskName", "task_name", default="worker", hidden=True)
@click.option("--taskReplicas", "task_replicas", type=click.IntRange(1), help="Replicas; like --workers.")
@click.option("--taskImages", "task_images", default="", help="Image, like --image.")
@click.option("--taskCPU", "task_cpu", default="", help="Processors, like --cpu.")
@click.option("--taskMemory", "task_memory", default="", help="Memory, like --memory.")
def volcanojob(command: tuple[str, ...], **values: Any) -> None:
    """Equal workers that start together, as Volcano's jobs do."""
    given = {"image": values["task_images"], "cpu": values["task_cpu"], "memory": values["task_memory"]}
    values |= {key: value for key, value in given.items() if value}
    role: Values = {"replicas": values["task_replicas"] or values["workers"]}
    if values["min_available"]:
        role["min_replicas"] = min(values["min_available"], role["replicas"])
    _submit("plain", {"worker": role}, command, values)


@submit.command("xgboostjob")
@common_flags
def xgboostjob(command: tuple[str, ...], **values: Any) -> None:
    """An XGBoost job; --workers counts the master."""
    roles: Values = {"master": {}} | ({"worker": {"replicas": values["workers"] - 1}} if values["workers"] > 1 else {})
    _submit("xgboost", roles, command, values)


@submit.command("job")
@common_flags
def plainjob(command: tuple[str, ...], **values: Any) -> None:
    """Equal workers that need not know each other."""
    _submit("plain", {"worker": {"replicas": values["workers"]}}, command, values)


def _submit_mpi(command: tuple[str, ...], values: Values, bounds: Values | None = None) -> None:
    workers = {"replicas": values["workers"], "run": ["sleep", "365d"], **(bounds or {})}
    launcher = {"devices": 0, "cpus": 1, "memory": 0}
    _submit("mpi", {"launcher": launcher, "worker": workers}, command, values)


def _order(roles: Values, sequence: str) -> None:
    """A start order of the user's own: each role waits for the one before it."""
    words = [_SEQUENCE.get(word.strip().casefold(), word.strip().casefold()) for word in sequence.split(",") if word]
    unknown = [word for word in words if word not in _SEQUENCE.values()]
    if unknown:
        known = "Worker, PS, Chief, Evaluator"
        raise click.UsageError(f"--role-sequence: there is no role '{unknown[0]}'; known are {known}.")
    present = [word for word in words if word in roles]
    for before, after in zip([None, *present], present, strict=False):
        roles[after]["after"] = [before] if before else []


def _submit(
    framework: str, roles: Values, command: tuple[str, ...], values: Values, *, options: Values | None = None
) -> None:
    import json

    from millpond.jobs.frameworks import FRAMEWORKS
    from millpond.jobs.spec import load_jobs

    document = _document(roles, command, values) | {"framework": framework, "options": options or {}}
    document = {key: value for key, value in document.items() if value != {}}
    (spec,) = load_jobs(json.dumps(document))
    is_local = chosen_cluster().is_local
    template = {} if is_local else pod_template(values)
    text = json.dumps(document | ({"template": template} if template else {}))
    used = () if is_local else USED
    unused = [flag for flag in noted_flags(values) if flag not in used]
    notes = [f"{flag} has no effect on {'a local' if is_local else 'this'} cluster." for flag in unused]
    if is_local:
        notes += [f"--data {given}: the path is taken as it stands on this machine." for given in values["data"]]
    kind = FRAMEWORKS[framework].kind
    with open_jobs() as client:
        client.submit_texts([text], notes)
    for note in (*spec.notes, *notes):
        click.echo(f"Note: {note}", err=True)
    is_cron = spec.cron is not None
    click.echo(f"{'cron' if is_cron else kind.lower()}/{spec.name} created")
    click.echo(f"The {'Cron' if is_cron else 'Job'} {spec.name} has been submitted successfully")
    line = f"get {spec.name} --type {kind.lower()} -n {spec.namespace}"
    click.echo(f"You can run `millpond arena {f'cron get {spec.name}' if is_cron else line}` to check the job status")


def _document(roles: Values, command: tuple[str, ...], values: Values) -> Values:
    """The job in our short form, but for its framework."""
    document: Values = {"name": values["name"]}
    if command:
        document["run"] = [f"/bin/{values['shell']}", "-c", " ".join(command)]
    priority = values["priority"]
    is_number = priority.lstrip("-").isdigit()
    simple = {
        "namespace": values["namespace"],
        "tenant": values["queue"],
        "priority": int(priority) if is_number else None,
        "priority_class": None if is_number else priority,
        "image": values["image"],
        "working_dir": values["working_dir"],
        "env": _pairs("--env", values["env"]),
        "labels": _pairs("--label", values["label"]),
        "annotations": _pairs("--annotation", values["annotation"]),
        "clean_up": values["clean_task_policy"],
        "deadline": _seconds(values["running_timeout"]),
        "ttl": _seconds(values["ttl_after_finished"]),
        "backoff_limit": values["job_backoff_limit"],
        "success": values["success_policy"],
        "code": _code(values),
        "cron": values.get("cron"),
        "tensorboard": {"log_dir": values["logdir"]} if values["tensorboard"] else None,
    }
    document |= {key: value for key, value in simple.items() if value not in (None, "", {})}
    devices = values["gpus"] + sum(int(n) for n in _pairs("--device", values["device"]).values() if n.isdigit())
    defaults = {"devices": devices, "cpus": _amount(values["cpu"]), "memory": _amount(values["memory"]),
                "restart": values["job_restart_policy"], "node_selector": _pairs("--selector", values["selector"])}
    for name, role in roles.items():
        filled = {key: value for key, value in defaults.items() if value not in (None, "", {}, 0)} | role
        selector = _pairs(f"--{name}-selector", _listed(values.get(f"{name}_selector")))
        if selector:
            filled["node_selector"] = filled.get("node_selector", {}) | selector
        if values["spot_instance"] and name == "worker":
            filled["spot"] = filled.get("replicas", 1)
        roles[name] = filled
    return document | {"roles": roles}


def _code(values: Values) -> Values | None:
    if not values["sync_mode"]:
        return None
    if values["sync_mode"] != "git":
        raise click.UsageError("--sync-mode: only git works on a local cluster.")
    if not values["sync_source"]:
        raise click.UsageError("--sync-mode git needs --sync-source URL.")
    return {"git": values["sync_source"]}


def _pairs(flag: str, texts: Iterable[str]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise click.UsageError(f"{flag}: '{text}' is not NAME=VALUE.")
        pairs[key] = value
    return pairs


def _listed(given: str | Iterable[str] | None) -> list[str]:
    """One flag or several, with commas or without."""
    texts = [given] if isinstance(given, str) else given or ()
    return [part for text in texts for part in text.split(",") if part]


def _amount(text: str) -> str | float | None:
    """A number as a number: the loader takes texts for amounts with a unit."""
    return float(text) if text.replace(".", "", 1).isdigit() else text or None


def _seconds(text: str) -> str | float | None:
    return _amount(text)
