"""Flags of `deploy create` and `deploy update`, and how they become fields of the short form."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import click

Values = dict[str, Any]
Decorated = Callable[..., Any]
_VERSION_FLAGS: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (("-V", "--version"), {"metavar": "NAME", "help": "The version; v1 when there is one alone."}),
    (("--model",), {"help": "Serve this model with `millpond serve`; else give a command after --."}),
    (("--replicas",), {"type": click.IntRange(0), "help": "How many."}),
    (("--weight",), {"type": click.IntRange(0), "help": "Share of the requests, against other versions' (100)."}),
    (("-e", "--env"), {"multiple": True, "metavar": "NAME=VALUE", "help": "A variable."}),
    (("--image",), {"help": "Image, where a cluster runs containers."}),
    (("--cpus",), {"type": float, "help": "Processors of a replica (1)."}),
    (("--memory",), {"metavar": "SIZE", "help": "Memory of a replica: 4GiB."}),
    (("--devices",), {"type": click.IntRange(0), "help": "Accelerators of a replica."}),
    (("--ready",), {"metavar": "PATH", "help": "Answers below 400 when ready (/ready of a model; else connecting)."}),
    (("--max-surge",), {"metavar": "N", "help": 'Replicas beyond the number in a rollout: 1, "25%" (1).'}),
    (("--max-unavailable",), {"metavar": "N", "help": "Replicas that may be missing in a rollout (0)."}),
    (("--drain",), {"metavar": "DURATION", "help": "The longest a replica may finish its requests (60s)."}),
    (("--min",), {"type": click.IntRange(0), "help": "Autoscaling: the fewest (1)."}),
    (("--max",), {"type": click.IntRange(1), "help": "Autoscaling: the most."}),
    (("--target",), {"multiple": True, "metavar": "NAME=N", "help": "Autoscaling: queue=4, kv=0.8, requests=8."}),
    (("--down",), {"metavar": "DURATION", "help": "Autoscaling: fewer after so long (5m)."}),
)  # fmt: skip
_WHOLE_FLAGS: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (("--host",), {"help": "Where the gateway listens (127.0.0.1)."}),
    (("-p", "--port"), {"type": click.IntRange(0, 65535), "help": "Its port; a free one without it."}),
    (("--concurrency",), {"type": click.IntRange(0), "help": "Requests a replica gets at a time; 0 no limit (0)."}),
    (("--max-queue",), {"type": click.IntRange(0), "help": "Requests that wait for a replica (256)."}),
    (("-n", "--namespace"), {"metavar": "NAME", "help": "Namespace."}),
    (("--tenant",), {"help": "Whose quota counts."}),
    (("--priority",), {"type": int, "help": "Who goes first."}),
)
_BUILT_IN = ("queue", "kv", "requests")


def version_flags(command: Decorated) -> Decorated:
    """Flags of one version, and the command after --."""
    for names, options in reversed(_VERSION_FLAGS):
        command = click.option(*names, **options)(command)
    return click.argument("command", nargs=-1, type=click.UNPROCESSED)(command)


def whole_flags(command: Decorated) -> Decorated:
    """Flags of the deployment as a whole."""
    for names, options in reversed(_WHOLE_FLAGS):
        command = click.option(*names, **options)(command)
    return command


def version_fields(command: tuple[str, ...], values: Values, old: Values | None = None) -> Values:
    """A version's fields from flags, over those it has."""
    fields = dict(old or {})
    if values["model"] is not None:
        fields = {key: value for key, value in fields.items() if key not in ("run", "ready")}
        fields["env"] = {key: value for key, value in fields.get("env", {}).items() if key != "MODEL"}
        fields["model"] = values["model"]
    if command:
        fields = {key: value for key, value in fields.items() if key != "model"}
        fields["run"] = ["/bin/sh", "-c", command[0]] if len(command) == 1 else list(command)
    for name in ("replicas", "weight", "image", "cpus", "memory", "devices"):
        if values[name] is not None:
            fields[name] = _number(values[name])
    if values["env"]:
        fields["env"] = fields.get("env", {}) | pairs("--env", values["env"])
    if values["ready"] is not None:
        fields["ready"] = {**_mapping(fields.get("ready")), "path": values["ready"]}
    rollout = {name: values[name] for name in ("max_surge", "max_unavailable", "drain") if values[name] is not None}
    if rollout:
        fields["rollout"] = fields.get("rollout", {}) | {key: _number(value) for key, value in rollout.items()}
    rule = _autoscale(values, fields.get("autoscale"))
    return fields | ({"autoscale": rule} if rule else {})


def whole_fields(values: Values) -> Values:
    """The deployment's fields from flags."""
    names = ("host", "port", "namespace", "tenant", "priority")
    fields = {name: values[name] for name in names if values[name] is not None}
    gateway = {name: values[name] for name in ("concurrency", "max_queue") if values[name] is not None}
    return fields | ({"gateway": gateway} if gateway else {})


def as_text(document: Values) -> str:
    """A document for the loader: JSON is YAML too."""
    return json.dumps(document)


def pairs(flag: str, texts: Iterable[str]) -> dict[str, str]:
    """NAME=VALUE texts as a mapping."""
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise click.UsageError(f"{flag}: '{text}' is not NAME=VALUE.")
        found[key] = value
    return found


def numbers(flag: str, texts: Iterable[str]) -> dict[str, float]:
    """NAME=NUMBER texts as a mapping."""
    found = {}
    for key, value in pairs(flag, texts).items():
        try:
            found[key] = float(value)
        except ValueError:
            raise click.UsageError(f"{flag}: '{value}' is not a number.") from None
    return found


def _autoscale(values: Values, old: object) -> Values:
    targets = numbers("--target", values["target"])
    given: Values = {name: values[name] for name in ("min", "max", "down") if values[name] is not None}
    given |= {name: target for name, target in targets.items() if name in _BUILT_IN}
    others = {name: target for name, target in targets.items() if name not in _BUILT_IN}
    if others:
        given["metrics"] = others
    return _mapping(old) | given if given else {}


def _mapping(found: object) -> Values:
    return dict(found) if isinstance(found, dict) else {}


def _number(value: Any) -> Any:
    """A number as a number: the loader takes texts for amounts with a unit."""
    if isinstance(value, str) and value.replace(".", "", 1).isdigit():
        return float(value) if "." in value else int(value)
    return value
