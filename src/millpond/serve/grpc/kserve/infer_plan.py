"""Plans of infer calls: messages that came before, with other raw tensors.

A message is its words, then each tensor after a tag and a length. When the words, the tags and the lengths are the same
bytes as in a message that was read, and the size is the same too, it says the same. `infer` asks and tells.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from millpond.serve.grpc.kserve.infer_messages import OutputWish
from millpond.serve.grpc.wire import varint
from millpond.serve.kserve.plans import MAX_WORDS, InferPlan, is_plain
from millpond.serve.proto import inference_pb2 as pb
from millpond.serve.servables.config import ServableConfig
from millpond.serve.servables.messages import InferRequest, InferResponse

_MAX_KEYS = 64
_MAX_ALIKE = 8  # plans whose messages have the same size and the same beginning
_KEY_BYTES = 16  # of the words, which are rarely less
_INPUT_TAG = b"\x3a"  # field 7, bytes
_OUTPUT_TAG = b"\x32"  # field 6, bytes


@dataclass(frozen=True, slots=True)
class MessagePlan:
    """One message's words, and where they stand.

    Attributes:
        fixed: Bytes that do not change, with their place, in order; the first are the words.
    """

    infer: InferPlan
    fixed: tuple[tuple[int, bytes], ...]
    wishes: Mapping[str, OutputWish]

    def fits(self, data: bytes | memoryview) -> bool:
        """Whether a message of the right size says the same."""
        return False not in [data[start : start + len(expected)] == expected for start, expected in self.fixed]


class MessagePlans:
    """The plans of one port."""

    def __init__(self) -> None:
        self._plans: dict[tuple[int, bytes], list[MessagePlan]] = {}

    def find(self, data: bytes | memoryview) -> MessagePlan | None:
        """Returns the plan of a message; None when it is to be read."""
        for plan in self._plans.get((len(data), bytes(data[:_KEY_BYTES])), ()):
            if plan.fits(data):
                return plan
        return None

    def find_begun(self, length: int, first: bytes) -> MessagePlan | None:
        """Returns the plan that a message of so many bytes with these first ones most likely has."""
        for plan in self._plans.get((length, first[:_KEY_BYTES]), ()):
            if first.startswith(plan.fixed[0][1]):
                return plan
        return None

    def keep(
        self, data: bytes | memoryview, request: InferRequest, wishes: Mapping[str, OutputWish]
    ) -> MessagePlan | None:
        """Remembers a message that was read, if it is of the plain kind, and returns its plan."""
        if not is_plain(request) or any(wish != OutputWish() for wish in wishes.values()):
            return None
        sizes = [tensor.array.nbytes for tensor in request.inputs.values()]
        before = [_INPUT_TAG + varint(size) for size in sizes]
        start = bytes(data[:MAX_WORDS])
        words = len(data) - sum(sizes) - sum(map(len, before))
        if not _KEY_BYTES <= words <= MAX_WORDS or not _are_words(start[:words]):
            return None
        fixed, places, at = [(0, start[:words])], [], words
        for size, head in zip(sizes, before, strict=True):
            if data[at : at + len(head)] != head:
                return None  # the tensors stand elsewhere, or in another form
            fixed.append((at, head))
            places.append(at + len(head))
            at += len(head) + size
        if len(self._plans) >= _MAX_KEYS:
            self._plans.clear()
        plan = MessagePlan(InferPlan(request, places, len(data)), tuple(fixed), wishes)
        alike = self._plans.setdefault((len(data), start[:_KEY_BYTES]), [])
        alike[:] = [plan, *alike[: _MAX_ALIKE - 1]]
        return plan


def learn_answer(
    plan: InferPlan, config: ServableConfig, response: InferResponse, message: pb.ModelInferResponse
) -> None:
    """Remembers an answer: its words, and tags and lengths before its tensors."""
    words = pb.ModelInferResponse()
    words.CopyFrom(message)
    words.ClearField("raw_output_contents")
    before = [_OUTPUT_TAG + varint(len(raw)) for raw in message.raw_output_contents]
    plan.learn_answer(config, response, words.SerializeToString(), before)


def _are_words(data: bytes) -> bool:
    """Whether bytes are a message by themselves, without tensors: then what stands behind them is all tensors."""
    try:
        return not pb.ModelInferRequest.FromString(data).raw_input_contents
    except DecodeError:
        return False
