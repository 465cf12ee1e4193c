"""Responses of one request of a stream as messages, already in bytes.

Responses of a language model differ in one text only: what is before it in the message is made once. Knows the wire
form of two messages, and nothing of who sends them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from millpond.serve.grpc.kserve.infer_messages import OutputWish, write_response
from millpond.serve.grpc.wire import SHORT_TEXT, field
from millpond.serve.kserve.server import KServe
from millpond.serve.proto import inference_pb2 as pb
from millpond.serve.servables.config import ServableConfig
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.messages import InferResponse

_FINAL = "triton_final_response"
_INFER_RESPONSE = b"\x12"  # field 2 of ModelStreamInferResponse, with a length
_RAW_CONTENTS = b"\x32"  # field 6 of ModelInferResponse, its last one, with a length


class StreamWriter:
    """Writes the responses of one request.

    Args:
        server: Where they come from.
        config: Of the servable.
        request_id: The client's.
        wishes: How it wants outputs.
        wants_empty: Whether a last response without outputs is sent too.
    """

    def __init__(
        self,
        server: KServe,
        config: ServableConfig,
        request_id: str,
        wishes: Mapping[str, OutputWish],
        *,
        wants_empty: bool,
    ) -> None:
        self._server = server
        self._config = config
        self._request_id = request_id
        self._wishes = wishes
        self._wants_empty = wants_empty
        self._before: dict[tuple[object, ...], bytes] = {}  # a text, by what else is in the message
        self._heads: dict[tuple[int, tuple[object, ...]], bytes] = {}  # a short text, by its length too

    def write(self, response: InferResponse, send: Callable[[bytes], None]) -> None:
        """Sends a response as a message, if it is one that the client sees.

        Raises:
            ServableError: An output cannot be sent as it is wanted.
        """
        if response.error is not None:
            send(write_failure(self._request_id, response.error, response))
        elif response.outputs or self._wants_empty or not response.final:
            send(self._message(response))

    def _message(self, response: InferResponse) -> bytes:
        key = raw = None
        if len(response.outputs) == 1 and not (self._wishes or response.parameters):
            ((name, tensor),) = response.outputs.items()
            if tensor.datatype == "BYTES" and tensor.array.size == 1:
                text = tensor.array.item()
                if isinstance(text, bytes):
                    key = (response.model, response.version, response.final, name, tensor.array.shape)
                    if (head := self._heads.get((len(text), key))) is not None:
                        return head + text
                    before = self._before.get(key)
                    raw = len(text).to_bytes(4, "little") + text
                    if before is not None:
                        whole = field(_INFER_RESPONSE, before + field(_RAW_CONTENTS, raw))
                        if 0 < len(text) < SHORT_TEXT:
                            self._heads[len(text), key] = whole[: -len(text)]
                        return whole
        written = write_response(self._server, self._config, self._request_id, self._wishes, response)
        if not response.outputs:
            written.ClearField("model_version")  # as Triton leaves it
        written.parameters[_FINAL].bool_param = response.final
        message = written.SerializeToString()
        if key is not None and raw is not None:
            last = field(_RAW_CONTENTS, raw)
            if message.endswith(last):
                self._before[key] = message[: -len(last)]
        return field(_INFER_RESPONSE, message)


def write_failure(request_id: str, error: ServableError, response: InferResponse | None) -> bytes:
    """Returns the message of a request that failed, at once or with a response."""
    answer = pb.ModelStreamInferResponse(error_message=error.message)
    answer.infer_response.id = request_id
    if response is not None:
        answer.infer_response.model_name = response.model
        answer.infer_response.parameters[_FINAL].bool_param = response.final
    return answer.SerializeToString()
