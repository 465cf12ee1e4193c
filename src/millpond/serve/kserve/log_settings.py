"""What is logged, as clients may read and change it while the server runs."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from millpond.serve.kserve.parameters import ClientFault
from millpond.serve.servables.errors import ServableError

LOGGER = "millpond.serve"
_FLAGS = ("log_info", "log_warning", "log_error")
_FORMATS = ("default", "ISO8601")
_NOT_BOOLEAN = "attempt to access JSON non-boolean as boolean"
_NOT_NATURAL = "attempt to access JSON non-unsigned-integer as unsigned-integer"
_NOT_TEXT = "attempt to access JSON non-string as string"


class LogSettings:
    """The settings of one server; they decide the level of the `millpond.serve` logger."""

    def __init__(self) -> None:
        self._values: dict[str, bool | int | str] = {
            "log_file": "",
            "log_info": True,
            "log_warning": True,
            "log_error": True,
            "log_verbose_level": 0,
            "log_format": "default",
        }

    def document(self) -> dict[str, bool | int | str]:
        """Returns all settings."""
        return dict(self._values)

    def update(self, changes: Mapping[str, object], *, is_grpc: bool = False) -> None:
        """Changes settings; keys that are none are ignored, as Triton does.

        Args:
            changes: Values by key.
            is_grpc: Whose words an error has.

        Raises:
            ServableError: A value makes no sense; nothing is changed then.
        """
        values = dict(self._values)
        if "log_file" in changes:
            raise ServableError("unsupported", "log file location can not be updated through network protocol")
        for name in (name for name in values if name in changes):
            value = changes[name]
            if name in _FLAGS:
                if not isinstance(value, bool):
                    raise ClientFault(f"expect boolean for '{name}'" if is_grpc else _NOT_BOOLEAN)
                values[name] = value
            elif name == "log_verbose_level":
                if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                    raise ClientFault(f"expect int32 for '{name}'" if is_grpc else _NOT_NATURAL)
                values[name] = value & 0xFFFFFFFF  # a number of 32 bits, of which Triton keeps the lower ones too
            elif name == "log_format" and value is not None:  # null leaves it as it is, as with Triton
                if not isinstance(value, str):
                    raise ClientFault(f"expect string for '{name}'" if is_grpc else _NOT_TEXT)
                if value not in _FORMATS:
                    raise ServableError("invalid_argument", f"log_format is not one of {', '.join(_FORMATS)}")
                values[name] = str(value)
        self._values = values
        self._apply()

    def _apply(self) -> None:
        values = self._values
        level = logging.CRITICAL
        levels = {"log_error": logging.ERROR, "log_warning": logging.WARNING, "log_info": logging.INFO}
        for name, reached in levels.items():
            if values[name]:
                level = reached
        logging.getLogger(LOGGER).setLevel(logging.DEBUG if values["log_verbose_level"] else level)
