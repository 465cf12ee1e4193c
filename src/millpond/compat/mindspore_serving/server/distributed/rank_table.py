"""The rank table: a JSON file that says which device of which server has which rank.

Raises `RuntimeError` that names what is missing. Called by `DistributedStartConfig`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Rank:
    """One rank's place."""

    rank_id: int
    device_id: int
    server_id: str


@dataclass(frozen=True, slots=True)
class RankTable:
    """All ranks, from 0 on."""

    ranks: tuple[Rank, ...]


def read_rank_table(file: str) -> RankTable:
    """Reads a file.

    Raises:
        RuntimeError: It cannot be read, or is no rank table.
    """
    try:
        document = json.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise RuntimeError(f"Cannot access rank table file '{file}': {error.strerror}") from None
    except ValueError as error:
        raise RuntimeError(f"Rank table file '{file}' is no JSON: {error}") from None
    ranks: list[Rank] = []
    for server in _list(file, document, "server_list"):
        server_id = _field(file, server, "server_id", str)
        for device in _list(file, server, "device"):
            ranks.append(Rank(_number(file, device, "rank_id"), _number(file, device, "device_id"), server_id))
    ranks.sort(key=lambda rank: rank.rank_id)
    if [rank.rank_id for rank in ranks] != list(range(len(ranks))) or not ranks:
        raise RuntimeError(f"Rank table file '{file}': the rank ids are not 0 to n, each once")
    return RankTable(tuple(ranks))


def _field(file: str, parent: Any, name: str, kind: type) -> Any:
    value = parent.get(name) if isinstance(parent, dict) else None
    if not isinstance(value, kind):
        raise RuntimeError(f"Rank table file '{file}': '{name}' is missing or is no {kind.__name__}")
    return value


def _list(file: str, parent: Any, name: str) -> list[Any]:
    items: list[Any] = _field(file, parent, name, list)
    return items


def _number(file: str, parent: Any, name: str) -> int:
    text: str = _field(file, parent, name, str)
    if not (text.isascii() and text.isdecimal()):
        raise RuntimeError(f"Rank table file '{file}': '{name}' is '{text}' and no number")
    return int(text)
