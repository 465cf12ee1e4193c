"""`mindspore_serving.log`: the functions its users' scripts call, over Python's logging."""

from __future__ import annotations

import logging

__all__ = ["debug", "error", "info", "warning"]

_logger = logging.getLogger("millpond.mindspore")

debug = _logger.debug
info = _logger.info
warning = _logger.warning
error = _logger.error
