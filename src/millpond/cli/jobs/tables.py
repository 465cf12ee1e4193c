"""Plain tables, ages and documents as the jobs commands print them. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

Document = dict[str, object] | list[dict[str, object]]


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, ruler: bool = False, indent: str = "") -> str:
    """Columns two spaces apart, with a row of dashes under the head when asked."""
    dashes = [["-" * len(name) for name in head]] if ruler else []
    lines = [list(head), *dashes, *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join((indent + "  ".join(cells)).rstrip() for cells in padded)


def age(seconds: float) -> str:
    """A duration in one or two units, as kubectl has it: 45s, 12m, 3h, 2d."""
    seconds = max(0, int(seconds))
    if seconds < 120:
        return f"{seconds}s"
    if seconds < 7200:
        return f"{seconds // 60}m"
    if seconds < 172_800:
        return f"{seconds // 3600}h"
    return f"{seconds // 86_400}d"


def dump(document: Document, form: str) -> str:
    """A document as JSON or YAML."""
    if form == "json":
        return json.dumps(document, indent=4)
    import yaml

    return str(yaml.safe_dump(document, sort_keys=False, allow_unicode=True)).rstrip("\n")
