"""`millpond models`: what can be named, what is in the cache, and what a checkpoint holds."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import click

from millpond.base.progress import StageProgress
from millpond.base.units import format_bytes


@click.group()
def models() -> None:
    """Names, fetches and inspects models."""


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list.")
def list_models(as_json: bool) -> None:
    """Lists the names that stand for a model."""
    from millpond.inference.weights import catalog

    rows = catalog.list_models()
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
        return
    for row in rows:
        click.echo(f"{row.name}\n  {row.description}\n  {format_bytes(row.size_bytes)}, {row.licence}")
        click.echo(f"  {row.path or 'not fetched'}")


@models.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def pull(name: str, as_json: bool) -> None:
    """Fetches a model into the cache and prints where it is."""
    from millpond.inference.weights import catalog

    with StageProgress() as progress:
        path = catalog.pull(name, progress)
    click.echo(json.dumps({"name": name, "path": path}) if as_json else path)


@models.command()
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, with every tensor.")
def inspect(model: str, as_json: bool) -> None:
    """Says what a checkpoint holds: family, shape, tensors.

    Reads its headers only.
    """
    from millpond.inference.weights.catalog import resolve_model

    with StageProgress() as progress:
        path = resolve_model(model, progress=progress)
    document = describe(path)
    click.echo(json.dumps(document, indent=2) if as_json else "\n".join(as_lines(document)))


def describe(path: str) -> dict[str, Any]:
    """Returns what --json prints of a model."""
    from millpond.inference.models import build_spec
    from millpond.inference.weights import open_checkpoint
    from millpond.inference.weights.summary import inspect_model

    summary = dataclasses.asdict(inspect_model(path))
    checkpoint = open_checkpoint(path)
    try:
        spec = dataclasses.asdict(build_spec(checkpoint.config))
        tensors = [
            {"name": tensor.name, "shape": tensor.shape, "dtype": tensor.dtype, "size_bytes": tensor.size_bytes}
            for tensor in checkpoint.tensors.values()
        ]
    finally:
        checkpoint.close()
    return {**summary, "spec": spec, "tensors": tensors}


def as_lines(document: dict[str, Any]) -> list[str]:
    """Returns the description for people: no single tensors, no settings at their default."""
    stored = ", ".join(f"{dtype} {format_bytes(size)}" for dtype, size in document["bytes_by_dtype"].items())
    rows = [
        ("path", document["path"]),
        ("format", document["format"]),
        ("family", document["family"]),
        ("parameters", f"{document['num_parameters'] / 1e6:.1f} million in {document['num_tensors']} tensors"),
        ("stored as", f"{stored} (together {format_bytes(document['size_bytes'])})"),
        ("context", f"{document['context_length']} tokens"),
        ("tokenizer", document["tokenizer"] or "none"),
        ("chat template", "yes" if document["has_chat_template"] else "none"),
    ]
    said = {"family", "max_position"}
    rows += [(key, value) for key, value in document["spec"].items() if value and key not in said]
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {_short(value)}" for name, value in rows]


def _short(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={inner}" for key, inner in value.items() if inner)
    if isinstance(value, list | tuple) and all(isinstance(item, bool) for item in value):
        return f"{sum(value)} of {len(value)} layers"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
