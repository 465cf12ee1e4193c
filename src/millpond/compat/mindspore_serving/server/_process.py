"""The one `ServingHost` of this process: the API's functions act on it, as the original's act on their process."""

from __future__ import annotations

from millpond.compat.mindspore_serving.server.host import ServingHost

HOST = ServingHost()
