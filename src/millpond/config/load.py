"""Reads what a user asks for into `EngineConfig`: TOML file, then MILLPOND_* variables, then flags; the last one wins.

Checks names and types and says where a wrong one stands. It knows no defaults and no machine: resolve.py decides those.
Called by the command line, by `LLM`, and by tests.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from millpond.base.errors import ConfigError
from millpond.base.suggest import closest, did_you_mean
from millpond.base.units import parse_bytes
from millpond.config import env
from millpond.config.fields import SettingField, sections, setting_fields
from millpond.config.schema import EngineConfig

_WORDS = {"true": True, "on": True, "yes": True, "1": True, "false": False, "off": False, "no": False, "0": False}
_ARTICLE = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def load_config(
    file: str | Path | None = None,
    *,
    flags: Mapping[str, object] | None = None,
    environment: Mapping[str, str] | None = None,
) -> EngineConfig:
    """Merges the config file, the environment and the flags.

    Args:
        file: A TOML file; None: the one MILLPOND_CONFIG names, if any.
        flags: Setting path (`cache.dtype`) to value; None values count as not given.
        environment: Variables to read in place of the process's own.

    Raises:
        ConfigError: A file that cannot be read, or a section, key or value that does not fit.
    """
    path = env.config_file() if file is None else Path(file)
    values = read_file(path) if path is not None else {}
    for name, text in env.setting_values(environment).items():
        field = setting_fields()[name]
        values[name] = check_value(field, text, f"the environment variable {field.variable}")
    return replace_settings(make_config(values), flags or {})


def make_config(settings: Mapping[str, object]) -> EngineConfig:
    """Builds the config from setting paths and values, e.g. `{"cache.dtype": "bfloat16"}`.

    Raises:
        ConfigError: A path is not known or a value does not fit it.
    """
    return replace_settings(EngineConfig(), settings)


def replace_settings(config: EngineConfig, settings: Mapping[str, object]) -> EngineConfig:
    """Returns `config` with the given settings put over it; None values change nothing."""
    by_section: dict[str, dict[str, object]] = {}
    for path, value in settings.items():
        field = setting_fields().get(path)
        if field is None:
            raise ConfigError(
                f"The setting '{path}' is not known.", fix=did_you_mean(path, setting_fields()) or _SEE, param=path
            )
        if value is not None:
            by_section.setdefault(field.section, {})[field.name] = check_value(field, value, f"--{path}")
    changed: dict[str, Any] = {name: replace(getattr(config, name), **values) for name, values in by_section.items()}
    return replace(config, **changed)


def dump_config(config: EngineConfig) -> dict[str, dict[str, object]]:
    """Returns what was asked for, section by section, without what was left open; secrets are masked."""
    dumped: dict[str, dict[str, object]] = {}
    for section in sections():
        asked = getattr(config, section.name)
        secret = {field.name for field in section.fields if field.setting.secret}
        values = {field.name: getattr(asked, field.name) for field in fields(section.config_class)}
        shown = {key: "***" if key in secret else value for key, value in values.items() if value is not None}
        if shown:
            dumped[section.name] = shown
    return dumped


def read_file(path: Path) -> dict[str, object]:
    """Reads a TOML file into setting paths and checked values.

    Raises:
        ConfigError: The file is not there, is not TOML, or holds something that is not a setting.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"The config file {path} cannot be read: {reason}.", fix="Check --config.") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"The config file {path} is not valid TOML: {error}.", fix="Correct that line.") from error
    known = {section.name: section for section in sections()}
    values: dict[str, object] = {}
    for name, table in document.items():
        if name not in known:
            raise _unknown_top_level(path, name)
        if not isinstance(table, dict):
            raise ConfigError(f"'{name}' in {path} must be a section.", fix=f"Write [{name}] and its keys below it.")
        names = {field.name: field for field in known[name].fields}
        for key, value in table.items():
            where = f"{name}.{key} in {path}"
            if key not in names:
                near = did_you_mean(key, names)
                raise ConfigError(f"The setting {where} is not known.", fix=near or _SEE, param=f"{name}.{key}")
            values[f"{name}.{key}"] = check_value(names[key], value, where)
    return values


def check_value(field: SettingField, value: object, where: str) -> object:
    """Returns `value` in the field's type. Text is read as that type, so that variables and flags can be given as text.

    Args:
        field: The setting.
        value: As it was found.
        where: What to call the place it was found in.

    Raises:
        ConfigError: It is not of that type or not one of the allowed words.
    """
    try:
        converted = _convert(field, value)
        _check_range(field, converted)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}.", fix=field.setting.help, param=field.path) from None
    if isinstance(converted, str) and field.choices and converted not in field.choices:
        choices = ", ".join(field.choices)
        near = closest(converted, field.choices)
        fix = f"Did you mean '{near}'?" if near else field.setting.help
        raise ConfigError(f"{where}: '{converted}' is not one of {choices}.", fix=fix, param=field.path)
    return converted


_SEE = "`millpond serve --help` lists all settings."


def _convert(field: SettingField, value: object) -> object:
    if isinstance(value, str):
        return _parse(field, value)
    if isinstance(value, Path) and field.kind is str:
        return str(value)
    if field.kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not field.kind:
        raise ValueError(f"{value!r} is not {_ARTICLE[field.kind]}")
    return value


def _parse(field: SettingField, text: str) -> object:
    if field.kind is str:
        return text
    if field.is_size:
        return parse_bytes(text)
    try:
        return _WORDS[text.strip().casefold()] if field.kind is bool else field.kind(text)
    except (KeyError, ValueError):
        raise ValueError(f"{text!r} is not {_ARTICLE[field.kind]}") from None


def _check_range(field: SettingField, value: object) -> None:
    low, high = field.setting.minimum, field.setting.maximum
    if not isinstance(value, int | float) or isinstance(value, bool):
        return
    if low is not None and not value >= low:  # written so that NaN fails too
        raise ValueError(f"{value} is below {low:g}")
    if high is not None and not value <= high:
        raise ValueError(f"{value} is above {high:g}")


def _unknown_top_level(path: Path, name: str) -> ConfigError:
    homes = [field.path for field in setting_fields().values() if field.name == name]
    if homes:
        return ConfigError(f"'{name}' in {path} stands in no section.", fix=f"Did you mean '{homes[0]}'?", param=name)
    near = did_you_mean(name, [section.name for section in sections()])
    return ConfigError(f"The section [{name}] in {path} is not known.", fix=near or _SEE, param=name)
