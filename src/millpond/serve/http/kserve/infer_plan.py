"""Plans of infer requests over HTTP: JSON that came before, with other raw tensors behind it.

Only requests whose tensors are all raw, in and out, are kept. `infer` asks and tells; a `Target` owns the plans of its
path.
"""

from __future__ import annotations

from millpond.serve.http.kserve.infer_request import OutputWishes
from millpond.serve.kserve.plans import MAX_WORDS, InferPlan, is_plain
from millpond.serve.servables.messages import InferRequest

_MAX_PLANS = 16


class InferPlans:
    """The plans of one path, by their JSON."""

    def __init__(self) -> None:
        self._plans: dict[bytes, tuple[InferPlan, OutputWishes]] = {}

    def find(self, body: bytes | memoryview, json_bytes: int) -> tuple[InferPlan, OutputWishes] | None:
        """Returns the plan of a body that begins with so many bytes of JSON; None when it is to be read."""
        if not 0 < json_bytes <= MAX_WORDS:
            return None
        found = self._plans.get(bytes(body[:json_bytes]))
        return found if found is not None and found[0].size == len(body) else None

    def keep(
        self, request: InferRequest, wishes: OutputWishes, body: bytes | memoryview, json_bytes: int
    ) -> InferPlan | None:
        """Remembers a request that was read, if it is of the plain kind, and returns its plan."""
        if not 0 < json_bytes <= MAX_WORDS or not is_plain(request):
            return None
        if not all(wish.is_raw for wish in (wishes.by_name or {"": wishes.default}).values()):
            return None
        places, at = [], json_bytes
        for tensor in request.inputs.values():
            places.append(at)
            at += tensor.array.nbytes
        if at != len(body):  # some of it is in JSON or in shared memory
            return None
        if len(self._plans) >= _MAX_PLANS:
            self._plans.clear()
        plan = InferPlan(request, places, at)
        self._plans[bytes(body[:json_bytes])] = (plan, wishes)
        return plan
