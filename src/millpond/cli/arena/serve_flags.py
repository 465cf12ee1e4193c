"""Flags of `arena serve`, and how they become fields of a version in our short form.

What only a cluster with containers can heed, such as volumes and ports beside the first, is noted on this machine.
Pure. Called by `serve`.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from typing import Any

import click

from millpond.cli.arena.pods import USED, pod_template
from millpond.cli.deploy.flags import Values, pairs
from millpond.cli.jobs.connect import chosen_cluster

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
        ("temp-dir", True, False),
    )
) + tuple(((f"--{name}",), {"type": _PORTS}) for name in ("grpc-port", "metrics-port"))  # fmt: skip
CUSTOM: tuple[Flag, ...] = (
    (("--port",), {"type": _PORTS, "default": 0, "help": "Port of the service, when there is no --restful-port."}),
    (("--restful-port",), {"type": _PORTS, "default": 0, "help": "Port of the service; a free one without it."}),
)
TRITON: tuple[Flag, ...] = (
    (("--model-repository",), {"help": "Directory of models."}),
    (("--http-port",), {"type": _PORTS, "default": 0, "help": "Port of the service; a free one without it."}),
    (("--load-model",), {"multiple": True, "help": "Load these alone."}),
    (("--allow-metrics",), {"is_flag": True, "hidden": True}),
    (("--extend-command",), {"default": "", "help": "More flags of tritonserver."}),
)
_SERVE_TRITON = f'exec {shlex.quote(sys.executable)} -c "from millpond.cli.tritonserver import main; main()"'
_GRPC, _METRICS = 8001, 8002
_PODS = ("--annotation", "--grpc-port", "--metrics-port")
_TRITON_PORTS = '--http-port "$PORT" --allow-grpc false --allow-metrics false'


def serve_flags(*tables: tuple[Flag, ...]) -> Callable[[Decorated], Decorated]:
    def decorate(command: Decorated) -> Decorated:
        hidden = [(names, options | {"hidden": True}) for names, options in _NOTED]
        for names, options in reversed([*(flag for table in tables for flag in table), *_COMMON, *hidden]):
            command = click.option(*names, **options)(command)
        return click.argument("command", nargs=-1, type=click.UNPROCESSED)(command)

    return decorate


def custom_run(command: tuple[str, ...], values: Values) -> list[str]:
    return [f"/bin/{values['shell']}", "-c", " ".join(command)]


def triton_run(values: Values) -> list[str]:
    models = [f"--load-model={name}" for name in values["load_model"]]
    control = ["--model-control-mode=explicit"] if models else []
    more = [f"--model-repository={values['model_repository']}", *control, *models]
    program, ports = (_SERVE_TRITON, _TRITON_PORTS) if chosen_cluster().is_local else _triton_in_pod(values)
    line = f"{program} {shlex.join(more)} {ports} {values['extend_command']}"
    return ["/bin/sh", "-c", line.strip()]


def _triton_in_pod(values: Values) -> tuple[str, str]:
    """The image's own server, which may be any: it is reached from outside its container."""
    ports = f'--http-address 0.0.0.0 --http-port "$PORT" --grpc-port {values["grpc_port"] or _GRPC}'
    metrics = values["metrics_port"] or (_METRICS if values["allow_metrics"] else 0)
    return "exec tritonserver", ports + (f" --metrics-port {metrics}" if metrics else " --allow-metrics false")


def version_fields(run: list[str] | None, values: Values, old: Values | None = None, ready: str = "") -> Values:
    """A version's fields in the short form."""
    fields = dict(old or {})
    simple = {
        "run": run, "image": values["image"], "devices": values["gpus"], "cpus": _amount(values["cpu"]),
        "memory": _amount(values["memory"]), "replicas": values["replicas"], "model": values["model_name"],
        "ready": read_probe(values) or (ready if run is not None and not old else None),
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


def read_probe(values: Values) -> Any:
    """Arena's readiness flags: httpGet with "path: /x", or tcpSocket."""
    options = dict(text.partition(":")[::2] for text in values["readiness_probe_action_option"])
    path = options.get("path", "").strip()
    if values["readiness_probe_action"] == "httpGet" and not path:
        raise click.UsageError('--readiness-probe-action httpGet needs --readiness-probe-action-option "path: /x".')
    return {"tcpSocket": {}, "httpGet": path}.get(values["readiness_probe_action"] or "", path or None)


def notes_of(values: Values) -> list[str]:
    """What of the flags has no effect where it runs."""
    given = [names[0] for names, _ in _NOTED if values[names[0][2:].replace("-", "_")]]
    if not chosen_cluster().is_local:
        return [f"{flag} has no effect on this cluster." for flag in given if flag not in (*USED, *_PODS)]
    notes = [f"{flag} has no effect on a local cluster." for flag in given]
    return notes + [f"--data {text}: the path is taken as it stands on this machine." for text in values["data"]]


def pod_fields(kind: str, port: int, values: Values) -> Values:
    """Fields that a cluster with containers heeds: ports, volumes, secrets, annotations."""
    ports = {"grpc": values["grpc_port"] or (_GRPC if kind == "triton" else 0),
             "metrics": values["metrics_port"] or (_METRICS if values.get("allow_metrics") else 0)}  # fmt: skip
    template = pod_template(values)
    notes = pairs("--annotation", values["annotation"])
    if notes:
        template["metadata"] = {"annotations": notes}
    fields = {"container_port": port, "ports": {name: number for name, number in ports.items() if number},
              "template": template}  # fmt: skip
    return {key: value for key, value in fields.items() if value}


def _amount(text: str | None) -> str | float | None:
    if text is None:
        return None
    return (float(text) if "." in text else int(text)) if text.replace(".", "", 1).isdigit() else text
