"""Arena's flags that are about pods, as the `template` of a MillpondJob: volumes, tolerations, secrets, shared memory.

Only a cluster with containers can heed them; elsewhere they are noted. Pure. Called by `submit` and `serve`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click

Values = dict[str, Any]
USED = ("--data-dir", "--data-subpath-expr", "--temp-dir", "--toleration", "--rdma", "--image-pull-secret",
        "--image-pull-policy", "--share-memory", "--env-from-secret")  # fmt: skip


def pod_template(values: Values) -> Values:
    """The template; empty when no flag asks for one.

    Raises:
        click.UsageError: A flag cannot be read.
    """
    volumes, mounts = _volumes(values)
    container: Values = {
        "volumeMounts": mounts,
        "envFrom": [{"secretRef": {"name": name}} for name in _several(values.get("env_from_secret"))],
        "imagePullPolicy": values.get("image_pull_policy"),
        "resources": {"requests": {"rdma/hca": "1"}, "limits": {"rdma/hca": "1"}} if values.get("rdma") else None,
    }
    container = {key: value for key, value in container.items() if value}
    spec: Values = {
        "containers": [container] if container else [],
        "volumes": volumes,
        "tolerations": [_toleration(text) for text in _several(values.get("toleration"))],
        "imagePullSecrets": [{"name": name} for name in _several(values.get("image_pull_secret"))],
    }
    spec = {key: value for key, value in spec.items() if value}
    return {"spec": spec} if spec else {}


def _volumes(values: Values) -> tuple[list[Values], list[Values]]:
    volumes: list[Values] = []
    mounts: list[Values] = []
    below = dict(_pair("--data-subpath-expr", text) for text in _several(values.get("data_subpath_expr")))

    def add(source: Values, path: str) -> Values:
        if not path.startswith("/"):
            raise click.UsageError(f"'{path}' is no absolute path in the container.")
        volumes.append({"name": f"data-{len(volumes)}"} | source)
        mounts.append({"name": volumes[-1]["name"], "mountPath": path})
        return mounts[-1]

    for text in _several(values["data"]):
        name, path = _pair("--data", text)
        mount = add({"persistentVolumeClaim": {"claimName": name}}, path)
        if name in below:
            mount["subPathExpr"] = below.pop(name)
    if below:
        raise click.UsageError(f"--data-subpath-expr: no --data is called '{next(iter(below))}'.")
    for text in _several(values.get("data_dir")):
        host, _, path = text.partition(":")
        add({"hostPath": {"path": host}}, path or host)
    for text in _several(values.get("temp_dir")):
        add({"emptyDir": {}}, _pair("--temp-dir", text)[1])
    if values.get("share_memory"):
        add({"emptyDir": {"medium": "Memory", "sizeLimit": values.get("share_memory")}}, "/dev/shm")
    return volumes, mounts


def _toleration(text: str) -> Values:
    """`all`, `key`, `key:effect` or `key=value:effect`."""
    if text == "all":
        return {"operator": "Exists"}
    taint, _, effect = text.partition(":")
    key, equals, value = taint.partition("=")
    made: Values = {"key": key} | ({"operator": "Equal", "value": value} if equals else {"operator": "Exists"})
    return made | ({"effect": effect} if effect else {})


def _several(texts: Iterable[str] | None) -> list[str]:
    """Arena takes lists both as repeated flags and with commas."""
    return [part for text in texts or () for part in text.split(",") if part]


def _pair(flag: str, text: str) -> tuple[str, str]:
    name, colon, rest = text.partition(":")
    if not (name and colon and rest):
        raise click.UsageError(f"{flag}: '{text}' is not NAME:PATH.")
    return name, rest
