"""Parameters of model configurations that runners read, as numbers."""

from __future__ import annotations

from collections.abc import Mapping

from millpond.serve.servables.errors import ServableError

MAX_THREADS = 1024


def thread_count(parameters: Mapping[str, str], name: str) -> int | None:
    """Returns a number of threads, None when the configuration leaves it open (0 or absent).

    Raises:
        ServableError: It is no number of threads.
    """
    text = parameters.get(name, "0").strip()
    if not text.isdecimal() or int(text) > MAX_THREADS:
        raise ServableError("invalid_argument", f"Parameter '{name}' is '{text}'; it may be 0 to {MAX_THREADS}.")
    return int(text) or None
