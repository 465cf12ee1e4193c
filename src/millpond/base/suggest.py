"""'Did you mean': the nearest known word to one that is not known.

Pure. Used wherever a user can mistype a name: config keys, setting values, models, commands.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def closest(word: str, known: Iterable[str]) -> str | None:
    """Returns the known word most like `word`, or None when nothing is like it."""
    by_folded = {name.casefold(): name for name in known}
    matches = difflib.get_close_matches(word.casefold(), by_folded, n=1, cutoff=0.6)
    return by_folded[matches[0]] if matches else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns "Did you mean 'x'?", or the known words when none is near and they are few, or ""."""
    names = sorted(known)
    near = closest(word, names)
    if near is not None:
        return f"Did you mean '{near}'?"
    return f"Known are {', '.join(names)}." if 0 < len(names) <= 16 else ""
