"""`Logger`: lines of the model in the server's log, at a level."""

from __future__ import annotations

import enum
import logging

from millpond.compat.triton_python_backend_utils.connection import CONNECTION


class LogLevel(enum.IntEnum):
    """How important a line is."""

    INFO = logging.INFO
    WARNING = logging.WARNING
    ERROR = logging.ERROR
    VERBOSE = logging.DEBUG


class Logger:
    """The server's log."""

    INFO = LogLevel.INFO
    WARNING = LogLevel.WARNING
    ERROR = LogLevel.ERROR
    VERBOSE = LogLevel.VERBOSE
    LogLevel = LogLevel

    @staticmethod
    def log(message: str, level: int = logging.INFO) -> None:
        """Writes a line."""
        CONNECTION.host.log(int(level), str(message))

    @staticmethod
    def log_info(message: str) -> None:
        """Writes a line that says what goes on."""
        Logger.log(message, LogLevel.INFO)

    @staticmethod
    def log_warn(message: str) -> None:
        """Writes a warning."""
        Logger.log(message, LogLevel.WARNING)

    @staticmethod
    def log_error(message: str) -> None:
        """Writes an error."""
        Logger.log(message, LogLevel.ERROR)

    @staticmethod
    def log_verbose(message: str) -> None:
        """Writes a detail, which is shown when the log is verbose."""
        Logger.log(message, LogLevel.VERBOSE)
