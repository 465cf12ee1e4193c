"""Triton's flags about traces, in their older and their newer form, as Millpond's settings.

`--trace-config` is `KEY=VALUE` for what holds everywhere and `MODE,KEY=VALUE` for one way of tracing; of the ways there
is only Triton's own here. Called by the command `tritonserver`.
"""

from __future__ import annotations

from typing import Any

import click

_GLOBAL = ("level", "rate", "count", "mode")
_OF_TRITON = ("file", "log-frequency")
_NUMBERS = {"rate": "trace_rate", "count": "trace_count", "log-frequency": "trace_log_frequency"}


def trace_settings(flags: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings about traces that the flags make.

    Raises:
        click.UsageError: A flag has another form, or asks for OpenTelemetry.
    """
    given = {"file": flags["trace_file"], "rate": flags["trace_rate"], "count": flags["trace_count"]}
    given["log-frequency"] = flags["log_frequency"]
    levels: list[str] = list(flags["trace_level"])
    for item in flags["trace_config"]:
        key, value = _read(item)
        if key == "level":
            levels.append(value)
        elif key != "mode":
            given[key] = value
    settings: dict[str, Any] = {"trace_file": given["file"], "trace_level": ",".join(_merge(levels)) or None}
    for key, name in _NUMBERS.items():
        settings[name] = None if given[key] is None else _number(key, given[key])
    return settings


def _read(item: str) -> tuple[str, str]:
    mode, comma, rest = item.partition(",")
    key, equals, value = (rest if comma else item).partition("=")
    if (comma and mode == "opentelemetry") or (key, value) == ("mode", "opentelemetry"):
        raise click.UsageError("Traces go to files here: --trace-config mode=triton. OpenTelemetry is not there.")
    if not equals or (comma and mode != "triton") or key not in (_OF_TRITON if comma else _GLOBAL):
        raise click.UsageError(
            f"--trace-config {item} is none of level=, rate=, count=, mode=triton, triton,file= and "
            "triton,log-frequency=."
        )
    return key, value


def _merge(levels: list[str]) -> list[str]:
    """Levels add up; OFF after others switches them off."""
    merged: list[str] = []
    for level in levels:
        merged = [level] if level == "OFF" else [*(one for one in merged if one not in ("OFF", level)), level]
    return merged


def _number(key: str, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise click.UsageError(f"--trace-config {key}={value} is no whole number.") from None
