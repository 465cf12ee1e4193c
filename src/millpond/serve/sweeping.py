"""`sweep`: looks at all connections every second, for those that are too slow.

One timer a port instead of one a request. A process that stood still (suspended, or starved of its processors) finds
every deadline passed when it wakes, with the bytes that clients sent in time still unread: so it gives them as long
as it slept before it looks again. Called by the ports; knows no protocol.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

CHECK_S = 1.0
_log = logging.getLogger("millpond.serve")
_MOST_PATIENCE_S = 60.0


async def sweep(check: Callable[[float], None]) -> None:
    """Calls `check` with the loop's time every second, for ever."""
    loop = asyncio.get_running_loop()
    patient_until = 0.0
    while True:
        due = loop.time() + CHECK_S
        await asyncio.sleep(CHECK_S)
        now = loop.time()
        late_s = now - due
        if late_s > CHECK_S:
            patient_until = now + min(late_s, _MOST_PATIENCE_S)
        if now >= patient_until:
            try:
                check(now)
            except Exception:  # one connection's fault must not leave all others without their deadlines
                _log.exception("looking for slow connections failed")
