"""`millpond models`: what can be named, what is in the cache, packed weights too, and what a checkpoint holds."""

from __future__ import annotations

import dataclasses
import json
import time
from typing import Any

import click

from millpond.base.progress import StageProgress
from millpond.base.units import format_bytes, parse_bytes


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


@models.command()
@click.option("--verify", is_flag=True, help="Read every file whole and say which are damaged.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list.")
def packed(verify: bool, as_json: bool) -> int:
    """Lists the packed weights that are kept for the next start.

    Exits with 1 when --verify finds a damaged file.
    """
    from millpond.inference.weights.packed_cache import PackedCache, packed_directory

    cache = PackedCache(packed_directory(), 0)
    entries = cache.entries()
    with StageProgress(quiet=not verify) as progress:
        wrong = {entry.key: cache.check(entry, progress) for entry in entries} if verify else {}
    if as_json:
        rows = [dataclasses.asdict(entry) | {"damage": wrong.get(entry.key)} for entry in entries]
        click.echo(json.dumps(rows, indent=2))
    else:
        for entry in entries:
            used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used_s))
            click.echo(f"{entry.key}\n  {entry.model}\n  {entry.dtype}, {format_bytes(entry.size_bytes)}, used {used}")
            if wrong.get(entry.key):
                click.echo(f"  damaged: {wrong[entry.key]}; it is written again when it is needed")
        total = sum(entry.size_bytes for entry in entries)
        click.echo(f"{len(entries)} files, {format_bytes(total)}, in {packed_directory()}")
    return int(any(wrong.values()))


@models.command()
@click.option("--keep", "keep", default="0", metavar="SIZE", help="Leave so much of what was used last, e.g. 8GiB.")
def prune(keep: str) -> None:
    """Removes packed weights, those used longest ago first; what an engine runs on stays."""
    from millpond.inference.weights.packed_cache import PackedCache, packed_directory

    try:
        left = parse_bytes(keep)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--keep") from error
    removed = PackedCache(packed_directory(), 0).prune(left)
    click.echo(f"Removed {len(removed)} files, {format_bytes(sum(entry.size_bytes for entry in removed))}.")


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
