"""Which servable, version and method a request's path names.

The keywords are looked for anywhere in the path, as the original does: `/version/0/model/add:sum` is fine. Raises
`CallError` with its texts.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import unquote

from millpond.serve.mindspore.calls import INVALID_INPUTS, CallError

_VERSION = re.compile(r"\s*([+-]?\d+)")
_MAX_VERSION = 2**32 - 1


class Target(NamedTuple):
    """What a path names; version 0 is the newest."""

    servable: str
    version: int
    method: str


def parse_target(path: str) -> Target:
    """Reads a path (without the query).

    Raises:
        CallError: A part is missing or is no number.
    """
    servable = _after(path, "/model/")
    if not servable:
        raise CallError(INVALID_INPUTS, "please check url, the keyword:[model] must contain.", status=404)
    version = _parse_version(_after(path, "/version/")) if "/version/" in path else 0
    method = path.rpartition(":")[2] if ":" in path else ""
    if not method:
        raise CallError(INVALID_INPUTS, "please check url, the keyword:[service method] must contain.", status=404)
    return Target(unquote(servable), version, unquote(method))


def _after(path: str, keyword: str) -> str:
    _, found, rest = path.partition(keyword)
    return re.split("[/:]", rest, maxsplit=1)[0] if found else ""


def _parse_version(text: str) -> int:
    match = _VERSION.match(text)
    if match is None:
        raise CallError(
            INVALID_INPUTS,
            f"please check url, the keyword:[version] value invalid, request version number {text}",
        )
    digits = match[1]
    version = int(digits) if len(digits) <= 20 else -1
    if not 0 <= version < _MAX_VERSION:
        raise CallError(INVALID_INPUTS, f"please check url, version number range failed, request version number {text}")
    return version
