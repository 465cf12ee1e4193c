"""`millpond models`: what can be named, what is in the cache, and what a checkpoint holds."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from millpond.base.progress import StageProgress
from millpond.base.units import format_bytes

if TYPE_CHECKING:
    from millpond.inference.weights import Checkpoint


@click.group()
def models() -> None:
    """Names, fetches and inspects models."""


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list.")
def list_models(as_json: bool) -> None:
    """Lists the names that stand for a model."""
    from millpond.inference.weights import catalog

    rows = [dataclasses.asdict(row) for row in catalog.list_models()]
    if as_json:
        click.echo(json.dumps(rows, indent=2, default=str))
        return
    for row in rows:
        place = row["path"] or "not fetched"
        click.echo(f"{row['name']:<16} {row['description']}\n{'':<16} {place}")


@models.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def pull(name: str, as_json: bool) -> None:
    """Fetches a model into the cache and prints where it is."""
    from millpond.inference.weights import catalog

    with StageProgress() as progress:
        path = str(catalog.pull(name, progress))
    click.echo(json.dumps({"name": name, "path": path}) if as_json else path)


@models.command()
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, with every tensor.")
def inspect(model: str, as_json: bool) -> None:
    """Says what a checkpoint holds, from its headers: family, shape, tensors, element types."""
    from millpond.inference.weights import open_checkpoint
    from millpond.inference.weights.catalog import resolve_model

    with StageProgress() as progress:
        path = str(resolve_model(model, progress=progress))
    checkpoint = open_checkpoint(path)
    try:
        document = describe(checkpoint)
    finally:
        checkpoint.close()
    click.echo(json.dumps(document, indent=2) if as_json else "\n".join(as_lines(document)))


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns what --json prints of a checkpoint."""
    from millpond.inference.models import build_spec

    tensors = list(checkpoint.tensors.values())
    stored = Counter[str]()
    for tensor in tensors:
        stored[tensor.dtype] += tensor.size_bytes
    return {
        "path": checkpoint.path,
        "format": checkpoint.format,
        "parameters": sum(tensor.num_elements for tensor in tensors),
        "size_bytes": stored.total(),
        "bytes_by_dtype": dict(stored.most_common()),
        "spec": dataclasses.asdict(build_spec(checkpoint.config)),
        "generation_config": checkpoint.generation_config,
        "tensors": [
            {"name": tensor.name, "shape": tensor.shape, "dtype": tensor.dtype, "size_bytes": tensor.size_bytes}
            for tensor in tensors
        ],
    }


def as_lines(document: dict[str, Any]) -> list[str]:
    """Returns the description for people: no single tensors, no settings at their default."""
    stored = ", ".join(f"{dtype} {format_bytes(size)}" for dtype, size in document["bytes_by_dtype"].items())
    rows = [
        ("path", document["path"]),
        ("format", document["format"]),
        ("parameters", f"{document['parameters'] / 1e6:.1f} million in {len(document['tensors'])} tensors"),
        ("stored as", f"{stored} ({format_bytes(document['size_bytes'])})"),
    ]
    rows += [(key, value) for key, value in document["spec"].items() if value not in (None, False, (), [])]
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {_short(value)}" for name, value in rows]


def _short(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={inner}" for key, inner in value.items() if inner not in ((), None))
    if isinstance(value, list | tuple) and all(isinstance(item, bool) for item in value):
        return f"{sum(value)} of {len(value)} layers"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
