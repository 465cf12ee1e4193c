"""`RequestTrace`: what happened to one request and when, in the records of Triton's trace files.

A protocol makes one for a request that is sampled and puts it into `InferRequest.trace`; the servable and its replicas
stamp what they do. Steps of an ensemble have traces of their own below it. When nobody works on the request any more
the whole goes to a sink. Knows no files, no rates, no protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from millpond.serve.servables.backend import ExecutionTiming
from millpond.serve.servables.tensors import Tensor

_MOST_ELEMENTS = 1 << 16  # of a tensor; a trace is no place for the rest
Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class TraceLevel:
    """What is recorded."""

    times: bool
    tensors: bool


class RequestTrace:
    """One request at one servable.

    Args:
        level: What is recorded.
        ids: Gives the numbers of traces.
        sink: Takes all records, those of steps among them, once everything is over.
        parent: The trace of the ensemble whose step this is.
    """

    __slots__ = ("_ids", "_is_begun", "_num_open", "_parent", "_records", "_sink", "id", "level")

    def __init__(
        self,
        level: TraceLevel,
        ids: Iterator[int],
        sink: Callable[[list[Record]], None],
        parent: RequestTrace | None = None,
    ) -> None:
        self.level = level
        self.id = next(ids)
        self._ids = ids
        self._sink = sink
        self._parent = parent
        self._records: list[Record] = []
        self._is_begun = False
        self._num_open = 1
        if parent is not None:
            parent.hold()

    def child(self) -> RequestTrace:
        """Returns the trace of a step; its first hold is the servable's."""
        return RequestTrace(self.level, self._ids, self._sink, self)

    def hold(self) -> None:
        """Keeps the trace open until one more `release`."""
        self._num_open += 1

    def release(self) -> None:
        """Ends a hold; the last one ends the trace. One that no servable accepted is dropped."""
        self._num_open -= 1
        if self._num_open:
            return
        if self._parent is not None:
            self._parent._records.extend(self._records)
            self._parent.release()
        elif self._is_begun:
            self._sink(self._records)

    def drop(self) -> None:
        """The servable did not take the request: a step's trace ends."""
        if not self._is_begun and self._parent is not None:
            self.release()

    def begin(self, model: str, version: int, request_id: str, now_ns: int) -> None:
        """A servable takes the request."""
        self._is_begun = True
        if self._parent is None:
            self.hold()  # a step has no protocol that holds it, too
        record: Record = {"id": self.id, "model_name": model, "model_version": version}
        if request_id:
            record["request_id"] = request_id
        if self._parent is not None:
            record["parent_id"] = self._parent.id
        self._records.append(record)
        self.stamp("REQUEST_START", now_ns)
        self.stamp("QUEUE_START", now_ns)

    def end(self, now_ns: int) -> None:
        """The servable is done with the request."""
        self.stamp("REQUEST_END", now_ns)
        self.release()

    def stamp(self, name: str, now_ns: int) -> None:
        """Something happened."""
        if self.level.times:
            self._records.append({"id": self.id, "timestamps": [{"name": name, "ns": now_ns}]})

    def computed(self, started_ns: int, timing: ExecutionTiming, answered_ns: int, ended_ns: int) -> None:
        """An execution is over; its parts have the batch's times. Outputs were there when the request was answered,
        which is before the execution is told to be over. The parts were timed in the model's process, the answer in
        this one, so their sum may be some microseconds more than there were: then outputs follow inputs at once."""
        input_end_ns = min(started_ns + timing.compute_input_ns, ended_ns)
        self.stamp("COMPUTE_START", started_ns)
        self.stamp("COMPUTE_INPUT_END", input_end_ns)
        self.stamp("COMPUTE_OUTPUT_START", max(input_end_ns, answered_ns - timing.compute_output_ns))
        self.stamp("COMPUTE_END", ended_ns)

    def tensors(self, activity: str, tensors: Iterable[Tensor]) -> None:
        """Records what went in or came out."""
        if not self.level.tensors:
            return
        for tensor in tensors:
            shown = {
                "name": tensor.name,
                "data": _data(tensor),
                "shape": ",".join(map(str, tensor.array.shape)),
                "dtype": tensor.datatype,
            }
            self._records.append({"id": self.id, "activity": activity, "tensor": shown})


def _data(tensor: Tensor) -> str:
    flat = tensor.array.reshape(-1)
    shown = flat[:_MOST_ELEMENTS]
    texts: Iterable[str]
    if tensor.datatype == "BYTES":
        texts = (item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item) for item in shown.tolist())
    elif shown.dtype.kind == "b":
        texts = (str(int(item)) for item in shown.tolist())
    elif shown.dtype.kind in "iu":
        texts = map(str, shown.tolist())
    else:
        texts = (f"{item:g}" for item in shown.astype(np.float64).tolist())
    return ",".join(texts) + (",..." if flat.size > shown.size else "")
