"""Sizes, counts and times as people read and write them.

Pure. Sizes in binary units (1 KiB = 1024 bytes), written the way config files, the command line and reports share.
"""

from __future__ import annotations

import re

_UNITS = {
    "": 1, "b": 1,
    "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40,
    "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
}  # fmt: skip
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*")


def parse_bytes(text: str) -> int:
    """Reads "4 GiB", "512MiB", "1.5g" or "1048576".

    Raises:
        ValueError: The text is not a size.
    """
    match = _SIZE.fullmatch(text)
    factor = _UNITS.get(match[2].casefold()) if match else None
    if match is None or factor is None:
        raise ValueError(f"{text!r} is not a size; write bytes or a unit: 4GiB, 512MiB")
    return int(float(match[1]) * factor) if "." in match[1] else int(match[1]) * factor


def format_bytes(size: float) -> str:
    """Writes a size with three digits or so: "92.3 MiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def format_seconds(seconds: float) -> str:
    """Writes a time in the unit that suits it: "3.2 ms", "0.85 s", "2 min 5 s"."""
    if seconds < 0.1:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 60:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"
