"""The settings as a table: one row a setting, read from the annotations of schema.py.

The one thing the loader, the command line's flags, the help and the reference page have in common. It knows types and
words, not values: no file, no environment, no default is computed here.
"""

from __future__ import annotations

import types
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from millpond.config.schema import EngineConfig, Setting


@dataclass(frozen=True, slots=True)
class SettingField:
    """One setting.

    Attributes:
        path: `section.name`: the key in the config file; with `--` before it, the flag.
        kind: str, int, float or bool.
        choices: The allowed words of a setting that has such a list.
        is_size: True for a number of bytes, which may be written with a unit.
    """

    path: str
    section: str
    name: str
    kind: type
    choices: tuple[str, ...]
    setting: Setting

    @property
    def is_size(self) -> bool:
        return self.kind is int and (self.name == "bytes" or self.name.endswith("_bytes"))

    @property
    def flag(self) -> str:
        return f"--{self.path}"

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return f"MILLPOND_{self.section}_{self.name}".upper()


@dataclass(frozen=True, slots=True)
class SectionInfo:
    """One section of the config file."""

    name: str
    help: str
    config_class: type
    fields: tuple[SettingField, ...]


@cache
def sections() -> tuple[SectionInfo, ...]:
    """Every section, in the order of the schema."""
    hints = get_type_hints(EngineConfig)
    return tuple(_section(field.name, hints[field.name]) for field in fields(EngineConfig))


@cache
def setting_fields() -> dict[str, SettingField]:
    """Every setting by its path."""
    return {field.path: field for section in sections() for field in section.fields}


def _section(name: str, config_class: type) -> SectionInfo:
    assert is_dataclass(config_class), f"section {name} is not a dataclass"
    hints = get_type_hints(config_class, include_extras=True)
    rows = []
    for field in fields(config_class):
        assert field.default is None, f"{name}.{field.name} must default to None: resolve.py decides"
        assert field.default_factory is MISSING
        rows.append(_setting_field(name, field.name, hints[field.name]))
    return SectionInfo(name, (config_class.__doc__ or "").strip(), config_class, tuple(rows))


def _setting_field(section: str, name: str, hint: Any) -> SettingField:
    assert get_origin(hint) is Annotated, f"{section}.{name} has no Setting"
    declared, setting = get_args(hint)
    kind = _without_none(declared)
    choices: tuple[str, ...] = ()
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        kind = str
    assert kind in (str, int, float, bool), f"{section}.{name}: {kind} cannot be written in a config file"
    return SettingField(f"{section}.{name}", section, name, kind, choices, setting)


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        (kind,) = [arg for arg in get_args(hint) if arg is not type(None)]
        return kind
    return hint
