"""`lent_place`: where the bytes of a large request are wanted while they come: where the model's instance reads them.

Both forms of the protocol ask once they know from a request before which model it is for and where its tensors begin.
"""

from __future__ import annotations

from millpond.serve.kserve.plans import InferPlan
from millpond.serve.kserve.server import KServe
from millpond.serve.servables.errors import ServableError

_ALIGNMENT = 64


def lent_place(server: KServe, plan: InferPlan, num_bytes: int, first: int) -> memoryview | None:
    """Returns a place for a request, or None when it may be anywhere.

    Args:
        server: Knows the models.
        plan: Of the request.
        num_bytes: Of the whole request.
        first: Where its first tensor begins, which is aligned.
    """
    start = -first % _ALIGNMENT
    try:
        lent = server.servables.find(plan.model, plan.version).lend(start + num_bytes)
    except ServableError:
        return None
    return None if lent is None else lent[start:].data
