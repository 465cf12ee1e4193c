"""Spreading the instances of an execution over workers, and putting the responses together again, in order.

A request with a batch dimension may be cut between rows; one that names a method is a single instance and stays whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np

from millpond.serve.servables.backend import Replies
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.messages import InferRequest, InferResponse
from millpond.serve.servables.tensors import Tensor


@dataclass(slots=True)
class Share:
    """What one worker gets: parts of requests, and which request and part each of them is."""

    requests: list[InferRequest] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)


def share_out(requests: Sequence[InferRequest], num_workers: int, *, is_batched: bool) -> list[Share]:
    """Returns at most `num_workers` shares of about as many instances each, in order."""
    rows = [_rows(request) if is_batched else 1 for request in requests]
    num_shares = max(1, min(num_workers, sum(rows)))
    limit = -(-sum(rows) // num_shares)
    shares = [Share()]
    room = limit
    for index, request in enumerate(requests):
        start = part = 0
        while start < rows[index] or not part:
            if not room and start < rows[index]:
                shares.append(Share())
                room = limit
            taken = min(room, rows[index] - start) if rows[index] else 0
            whole = taken == rows[index]
            shares[-1].requests.append(request if whole else _cut(request, start, start + taken))
            shares[-1].places.append((index, part))
            start, part, room = start + taken, part + 1, room - taken
    return shares


class Gathering:
    """Collects the parts' responses and passes each request's on when it is whole.

    Args:
        requests: As they came.
        shares: As `share_out` made them.
        replies: Where responses go.
    """

    def __init__(self, requests: Sequence[InferRequest], shares: Sequence[Share], replies: Replies) -> None:
        self._replies = replies
        self._parts: list[list[InferResponse | None]] = [[] for _ in requests]
        for share in shares:
            for index, _ in share.places:
                self._parts[index].append(None)

    def replies(self, share: Share) -> Replies:
        """Returns where the worker with this share sends its responses."""
        return _ShareReplies(self, share)

    def send(self, place: tuple[int, int], response: InferResponse) -> None:
        """Takes a part's response."""
        index, part = place
        parts = self._parts[index]
        if len(parts) == 1:
            self._replies.send(index, response)
            return
        if response.final:
            parts[part] = response
        whole = [one for one in parts if one is not None]
        if len(whole) == len(parts):
            self._replies.send(index, merged(whole))

    def cancelled(self, index: int) -> bool:
        """Whether nobody waits for a request."""
        return self._replies.cancelled(index)

    def reschedule(self, index: int) -> None:
        """Passes the wish on."""
        self._replies.reschedule(index)


@dataclass(slots=True)
class _ShareReplies:
    gathering: Gathering
    share: Share

    def send(self, index: int, response: InferResponse) -> None:
        self.gathering.send(self.share.places[index], response)

    def cancelled(self, index: int) -> bool:
        return self.gathering.cancelled(self.share.places[index][0])

    def reschedule(self, index: int) -> None:
        self.gathering.reschedule(self.share.places[index][0])


def merged(parts: Sequence[InferResponse]) -> InferResponse:
    """Returns the response of a request from those of its parts; the first error is the whole's."""
    failed = next((part for part in parts if part.error is not None), None)
    if failed is not None:
        return failed
    first = parts[0]
    outputs: dict[str, Tensor] = {}
    for name, tensor in first.outputs.items():
        arrays = [part.outputs[name].array for part in parts]
        if len({array.shape[1:] for array in arrays}) > 1:
            text = f"Output '{name}' differs in shape between instances."
            return InferResponse(first.model, first.version, error=ServableError("internal", text))
        outputs[name] = Tensor(name, tensor.datatype, np.concatenate(arrays))
    return msgspec.structs.replace(first, outputs=outputs)


def _rows(request: InferRequest) -> int:
    if request.method:
        return 1
    return next((len(tensor.array) for tensor in request.inputs.values()), 1)


def _cut(request: InferRequest, start: int, end: int) -> InferRequest:
    inputs = {name: Tensor(name, tensor.datatype, tensor.array[start:end]) for name, tensor in request.inputs.items()}
    return msgspec.structs.replace(request, inputs=inputs)
