"""Loads deployments from our short YAML.

    name: chat
    port: 8080
    replicas: 2
    run: millpond serve smollm2-135m --port $PORT
    ready: /ready
    autoscale: {min: 1, max: 4, queue: 4, kv: 0.8}

With several versions, `versions` maps names to the same fields; what stands beside it is shared. Nothing is created
here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from millpond.api.deployment import (
    AutoscaleSpec,
    DeploymentSpec,
    GatewaySpec,
    ProbeSpec,
    RolloutSpec,
    TemplateSpec,
    VersionSpec,
)
from millpond.api.job import RestartPolicy, RoleSpec, SpecError
from millpond.jobs.deployments.inference import is_inference, read_inference
from millpond.jobs.frameworks import FRAMEWORKS
from millpond.jobs.kubedl_pod import check_template
from millpond.jobs.quantities import read_duration
from millpond.jobs.spec import read_command, read_env, read_role_resources
from millpond.jobs.spec_document import Reader, read_documents
from millpond.jobs.spec_parts import read_name, read_texts

DEFAULT_VERSION = "v1"
MAX_NAME = 40  # names of replicas are longer by the version, the revision and a mark
_MAX_VERSION = 20
_MAX_REPLICAS = 1000
_MAX_VERSIONS = 20
_SERVE_MODEL = 'exec millpond serve "$MODEL" --port "$PORT"'
_ROLE = ("run", "env", "working_dir", "image", "devices", "device_type", "cpus", "memory", "node_selector")
_VERSION = (*_ROLE, "model", "replicas", "weight", "ready", "rollout", "autoscale", "metrics_path", "container_port",
            "ports", "template")  # fmt: skip
_WHOLE = ("name", "namespace", "tenant", "priority", "kind", "labels", "host", "port", "gateway", "versions", *_VERSION)
_READY = ("path", "interval", "timeout", "failures", "start", "give_up")
_ROLLOUT = ("max_surge", "max_unavailable", "drain")
_AUTOSCALE = ("min", "max", "up", "down", "tolerance", "queue", "kv", "requests", "metrics")
_GATEWAY = ("concurrency", "max_queue", "queue_timeout", "timeout", "idle_timeout", "retries")


def load_deployments(text: str, *, is_whole: bool = True) -> list[DeploymentSpec]:
    """Loads every deployment of a YAML text.

    Args:
        text: The documents.
        is_whole: These are all versions there will be, so one of them must get requests.

    Raises:
        SpecError: Something is wrong; `param` is the path of the field.
    """
    found = [read_deployment(document, is_whole=is_whole) for document in read_documents(text)]
    names = [(spec.namespace, spec.name) for spec in found]
    for name in names:
        if names.count(name) > 1:
            raise SpecError(f"name: two documents are called '{name[1]}'.", fix="Rename one.", param="name")
    return found


def read_deployment(document: Reader, *, is_whole: bool = True) -> DeploymentSpec:
    """Reads one document: our short form, or an Inference of KubeDL's."""
    if is_inference(document):
        return read_inference(document)
    document.check_fields(_WHOLE)
    name = document.need("name")
    if len(read_name(name)) > MAX_NAME:
        raise name.fail(f"is longer than {MAX_NAME} characters.")
    versions = _read_versions(document)
    if is_whole and not any(version.weight for version in versions):
        where = document.find("versions") or document.child("weight")
        raise where.fail("no version would get requests.", "Give one of them a weight above 0.")
    namespace = _find(document, "namespace", read_name, "default")
    return DeploymentSpec(
        name=name.text(),
        versions=versions,
        namespace=namespace,
        tenant=_find(document, "tenant", Reader.text, namespace),
        priority=_find(document, "priority", lambda reader: reader.integer(-(1 << 31)), 0),
        kind=_find(document, "kind", Reader.text, "serving"),
        gateway=_read_gateway(document),
        labels=read_texts(document.find("labels")),
    )


def _find(reader: Reader, key: str, read: Callable[[Reader], Any], default: Any) -> Any:
    found = reader.find(key)
    return default if found is None else read(found)


def _read_versions(document: Reader) -> tuple[VersionSpec, ...]:
    versions = document.find("versions")
    if versions is None:
        return (_read_version(DEFAULT_VERSION, document),)
    entries = list(versions.entries())
    if not 0 < len(entries) <= _MAX_VERSIONS:
        raise versions.fail(f"there must be 1 to {_MAX_VERSIONS} versions, not {len(entries)}.")
    found = []
    for key, entry in entries:
        read_name(Reader(key, entry.path))
        if len(key) > _MAX_VERSION:
            raise entry.fail(f"the name is longer than {_MAX_VERSION} characters.")
        own = Reader({}, entry.path) if entry.value is None else entry.check_fields(_VERSION)
        found.append(_read_version(key, _Layered(own, document)))
    return tuple(found)


class _Layered(Reader):
    """A version's own fields before those that all versions share."""

    def __init__(self, own: Reader, shared: Reader) -> None:
        super().__init__(own.value, own.path)
        self._own = own
        self._shared = shared

    def find_all(self, key: str) -> list[Reader]:
        """The field in all layers, the strongest last."""
        return [found for found in (self._shared.find(key), self._own.find(key)) if found is not None]

    def child(self, key: str) -> Reader:
        """The field where it stands."""
        is_shared = not self._own.has(key) and key in _VERSION and self._shared.has(key)
        return self._shared.child(key) if is_shared else self._own.child(key)

    def has(self, key: str) -> bool:
        """Whether either has the field."""
        return self._own.has(key) or (key in _VERSION and self._shared.has(key))


def _read_version(name: str, reader: Reader) -> VersionSpec:
    rollout, autoscale = reader.find("rollout"), reader.find("autoscale")
    rule = None if autoscale is None else _read_autoscale(autoscale)
    replicas = _find(reader, "replicas", lambda found: found.integer(0, _MAX_REPLICAS), 1 if rule is None else rule.low)
    return VersionSpec(
        name=name,
        template=_read_template(reader),
        replicas=replicas if rule is None else min(max(replicas, rule.low), rule.high),
        weight=_find(reader, "weight", lambda found: found.integer(0, 1_000_000), 100),
        rollout=RolloutSpec() if rollout is None else _read_rollout(rollout),
        autoscale=rule,
    )


def _read_template(reader: Reader) -> TemplateSpec:
    model, run = reader.find("model"), reader.find("run")
    ready = ProbeSpec()
    env: dict[str, str] = {}
    for layer in reader.find_all("env") if isinstance(reader, _Layered) else [reader.find("env")]:
        env |= read_env(layer)
    if run is not None:
        command = read_command(run)
    elif model is not None:
        command, ready, env = ("/bin/sh", "-c", _SERVE_MODEL), ProbeSpec(path="/ready"), {"MODEL": model.text()} | env
    elif reader.has("image"):
        command = ()
    else:
        raise reader.child("run").fail("is missing.", "Say what serves ('run'), or which model ('model').")
    probe, ports = reader.find("ready"), reader.find("ports")
    framework = FRAMEWORKS["serving"]
    role = RoleSpec(
        name=framework.roles[0].name,
        command=command,
        env=env,
        working_dir=_find(reader, "working_dir", Reader.text, ""),
        image=_find(reader, "image", Reader.text, ""),
        resources=read_role_resources(reader),
        restart=RestartPolicy.NEVER,
        after=(),
        port=_find(reader, "container_port", _read_port, framework.port),
        node_selector=read_texts(reader.find("node_selector")),
    )
    return TemplateSpec(
        role=role,
        ready=ready if probe is None else _read_ready(probe),
        metrics_path=_find(reader, "metrics_path", _read_path, "/metrics"),
        model="" if model is None else model.text(),
        ports=dict(_read_named_port(key, entry) for key, entry in ports.entries()) if ports is not None else {},
        pod=_find(reader, "template", check_template, {}),
    )


def _read_port(reader: Reader) -> int:
    return reader.integer(1, 65535)


def _read_named_port(name: str, reader: Reader) -> tuple[str, int]:
    if name == "http" or not re.fullmatch(r"[a-z]([a-z0-9-]{0,13}[a-z0-9])?", name):
        raise reader.fail(f"'{name[:60]}' is not a name for another port.", "Write up to 15 small letters, as grpc.")
    return name, _read_port(reader)


def _read_path(reader: Reader) -> str:
    text = reader.text()
    if not text.startswith("/") or not text.isascii() or not text.isprintable() or " " in text:
        raise reader.fail(f"'{text[:60]}' is not a path.", "Write /ready, for instance.")
    return text


def _read_ready(reader: Reader) -> ProbeSpec:
    if isinstance(reader.value, str):
        return ProbeSpec(path=_read_path(reader))
    reader.check_fields(_READY)
    default = ProbeSpec()
    return ProbeSpec(
        path=_find(reader, "path", _read_path, ""),
        interval_s=_find(reader, "interval", _least(0.05), default.interval_s),
        timeout_s=_find(reader, "timeout", _least(0.05), default.timeout_s),
        failures=_find(reader, "failures", lambda found: found.integer(1, 1000), default.failures),
        start_s=_find(reader, "start", _least(0.1), default.start_s),
        give_up=_find(reader, "give_up", lambda found: found.integer(0, 100_000), default.give_up),
    )


def _least(low: float) -> Callable[[Reader], float]:
    def read(reader: Reader) -> float:
        seconds = read_duration(reader)
        if seconds < low:
            raise reader.fail(f"must be at least {low:g} s.")
        return seconds

    return read


def _read_rollout(reader: Reader) -> RolloutSpec:
    reader.check_fields(_ROLLOUT)
    default = RolloutSpec()
    return RolloutSpec(
        max_surge=_find(reader, "max_surge", read_amount, default.max_surge),
        max_unavailable=_find(reader, "max_unavailable", read_amount, default.max_unavailable),
        drain_s=_find(reader, "drain", read_duration, default.drain_s),
    )


def read_amount(reader: Reader) -> int | str:
    """A whole number of replicas, or a share of them: "25%"."""
    if not isinstance(reader.value, str):
        return reader.integer(0, _MAX_REPLICAS)
    digits = reader.value.removesuffix("%")
    if digits.isascii() and digits.isdigit() and len(digits) <= 3 and int(digits) <= 100:
        return f"{int(digits)}%" if reader.value.endswith("%") else int(digits)
    raise reader.fail(f"'{reader.value[:20]}' is not a number of replicas.", 'Write 1, or "25%".')


def _read_autoscale(reader: Reader) -> AutoscaleSpec:
    reader.check_fields(_AUTOSCALE)
    low = _find(reader, "min", lambda found: found.integer(0, _MAX_REPLICAS), 1)
    high = reader.need("max").integer(1, _MAX_REPLICAS)
    if high < low:
        raise reader.child("max").fail(f"{high} is less than the minimum of {low}.")
    targets = {name: reader.child(name).number(1e-6) for name in ("queue", "kv", "requests") if reader.has(name)}
    metrics = reader.find("metrics")
    for name, target in () if metrics is None else metrics.entries():
        targets[name] = target.number(1e-6)
    if targets.get("kv", 0) > 1:
        raise reader.child("kv").fail("is a share of the KV cache, from 0 to 1.")
    if not targets:
        raise reader.fail("there is nothing to follow.", "Add queue: 4 (waiting requests a replica), kv: 0.8, ...")
    return AutoscaleSpec(
        low=low,
        high=high,
        targets=targets,
        up_s=_find(reader, "up", read_duration, 0.0),
        down_s=_find(reader, "down", read_duration, 300.0),
        tolerance=_find(reader, "tolerance", lambda found: found.number(0, 1), 0.1),
    )


def _read_gateway(document: Reader) -> GatewaySpec:
    default = GatewaySpec()
    fields = document.find("gateway") or Reader({}, "gateway")
    fields.check_fields(_GATEWAY)
    return GatewaySpec(
        host=_find(document, "host", Reader.text, default.host),
        port=_find(document, "port", lambda reader: reader.integer(0, 65535), default.port),
        concurrency=_find(fields, "concurrency", lambda reader: reader.integer(0), default.concurrency),
        max_queue=_find(fields, "max_queue", lambda reader: reader.integer(0, 1_000_000), default.max_queue),
        queue_timeout_s=_find(fields, "queue_timeout", read_duration, default.queue_timeout_s),
        timeout_s=_find(fields, "timeout", _least(0.1), default.timeout_s),
        idle_timeout_s=_find(fields, "idle_timeout", _least(0.1), default.idle_timeout_s),
        retries=_find(fields, "retries", lambda reader: reader.integer(0, 100), default.retries),
    )
