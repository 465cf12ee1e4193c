"""`server.master.context`: settings of the part that takes requests."""

from millpond.compat.mindspore_serving.server.master import context

__all__ = ["context"]
