"""Messages of `ms_service.proto` to calls and back.

Tensors are raw little-endian bytes, or `bytes_val` for strings and bytes. Raises `CallError` with the original's texts;
shared memory of clients is refused. Used by the service and by the Python client.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from millpond.serve.grpc.wire import SHORT_TEXT, field
from millpond.serve.mindspore.calls import (
    INVALID_INPUTS,
    Call,
    CallError,
    Failure,
    Instance,
    Result,
    Text,
    common_failure,
)
from millpond.serve.mindspore.values import Value, make_text
from millpond.serve.proto import ms_service_pb2 as pb

_NUMPY: dict[pb.DataType, np.dtype[Any]] = {
    number: np.dtype(name)
    for number, name in (
        (pb.MS_BOOL, "bool"),
        (pb.MS_INT8, "int8"),
        (pb.MS_UINT8, "uint8"),
        (pb.MS_INT16, "<i2"),
        (pb.MS_UINT16, "<u2"),
        (pb.MS_INT32, "<i4"),
        (pb.MS_UINT32, "<u4"),
        (pb.MS_INT64, "<i8"),
        (pb.MS_UINT64, "<u8"),
        (pb.MS_FLOAT16, "<f2"),
        (pb.MS_FLOAT32, "<f4"),
        (pb.MS_FLOAT64, "<f8"),
    )
}
_OF_NUMPY = {dtype: number for number, dtype in _NUMPY.items()}
_MAX_DIMS = 32
# Fields on the way to a text: of the reply, the instance, an entry of its map, and the tensor.
_INSTANCES, _ITEMS, _KEY, _VALUE, _BYTES_VAL = b"\x1a", b"\x0a", b"\x0a", b"\x12", b"\x22"


def read_request(request: pb.PredictRequest) -> Call:
    """Returns what a request asks for.

    Raises:
        CallError: A tensor contradicts itself.
    """
    spec = request.servable_spec
    instances = [
        {name: _read_input(name, tensor) for name, tensor in instance.items.items()} for instance in request.instances
    ]
    if any(instance.output_buffers for instance in request.instances):
        raise CallError(INVALID_INPUTS, "Shared memory for outputs is not supported; leave output_buffers empty")
    return Call(spec.name, spec.method_name, spec.version_number, instances)


def write_reply(request: pb.PredictRequest, results: Sequence[Result]) -> pb.PredictReply:
    """Returns the reply for a call's results."""
    reply = pb.PredictReply(servable_spec=request.servable_spec)
    failure = common_failure(results)
    if failure is not None:
        _add_failure(reply, failure)
        return reply
    has_failure = any(isinstance(result, Failure) for result in results)
    for result in results:
        instance = reply.instances.add()
        if isinstance(result, Failure):
            _add_failure(reply, result)
            continue
        if has_failure:
            reply.error_msg.add()
        write_instance(instance, result)
    return reply


class ReplyWriter:
    """The replies of one stream, in bytes; of those that are one text the rest is made once."""

    def __init__(self, request: pb.PredictRequest) -> None:
        self._request = request
        self._spec = pb.PredictReply(servable_spec=request.servable_spec).SerializeToString()
        self._name = ""  # of the text that the parts are around
        self._key = self._tensor = b""
        self._heads: dict[int, bytes] = {}  # all that is before a short text, by its length

    def write(self, result: Result | Text) -> bytes:
        """Returns the reply with a result."""
        if not isinstance(result, Text):
            return write_reply(self._request, [result]).SerializeToString()
        name, text = result
        if name == self._name:
            head = self._heads.get(len(text))
            return self._begun(text) if head is None else head + text
        reply = write_reply(self._request, [{name: make_text(text, "string")}])
        tensor, whole = reply.instances[0].items[name].SerializeToString(), reply.SerializeToString()
        self._key, self._tensor = field(_KEY, name.encode()), tensor.removesuffix(field(_BYTES_VAL, text))
        self._name = name if self._reply(text) == whole else ""
        self._heads.clear()
        return whole

    def _begun(self, text: bytes) -> bytes:
        """The first reply with a text of a length."""
        whole = self._reply(text)
        if 0 < len(text) < SHORT_TEXT:
            self._heads[len(text)] = whole[: -len(text)]
        return whole

    def _reply(self, text: bytes) -> bytes:
        entry = self._key + field(_VALUE, self._tensor + field(_BYTES_VAL, text))
        return self._spec + field(_INSTANCES, field(_ITEMS, entry))


def write_failure(request: pb.PredictRequest, error: CallError) -> pb.PredictReply:
    """Returns the reply for a call that failed as a whole."""
    reply = pb.PredictReply(servable_spec=request.servable_spec)
    _add_failure(reply, Failure(error.code, error.message or "Predict failed"))
    return reply


def write_instance(message: pb.Instance, instance: Instance) -> None:
    """Fills in one instance's tensors."""
    for name, value in instance.items():
        tensor = message.items[name]
        array = value.array
        tensor.shape.dims.extend(array.shape)
        if value.kind == "tensor":
            tensor.dtype = _OF_NUMPY[array.dtype.newbyteorder("<")]
            tensor.data = array.tobytes()
            continue
        tensor.dtype = pb.MS_STRING if value.kind == "string" else pb.MS_BYTES
        tensor.bytes_val.extend(_to_bytes(item) for item in array.reshape(-1).tolist())


def read_tensor(tensor: pb.Tensor) -> Value:
    """Returns a tensor's value.

    Raises:
        CallError: Its parts contradict each other.
    """
    shape = tuple(tensor.shape.dims)
    if tensor.dtype in (pb.MS_STRING, pb.MS_BYTES):
        return _read_text(tensor, shape)
    shown = f"Tensor check failed: input  shape {list(shape)} invalid"
    if any(size < 0 for size in shape) or len(shape) > _MAX_DIMS or 0 in shape[:-1]:
        raise CallError(INVALID_INPUTS, shown)
    dtype = _NUMPY.get(tensor.dtype)
    if dtype is None:
        raise CallError(INVALID_INPUTS, "Tensor check failed: input data type proto::MS_UNKNOWN invalid")
    if tensor.WhichOneof("tensor_data") == "shm_data":
        raise CallError(INVALID_INPUTS, "Shared memory is not supported; send the data in the request")
    if math.prod(shape) * dtype.itemsize != len(tensor.data):
        raise CallError(INVALID_INPUTS, f"Tensor check failed: input data size {len(tensor.data)} invalid")
    if dtype.kind == "b":
        return Value("tensor", (np.frombuffer(tensor.data, dtype=np.uint8) != 0).reshape(shape))
    return Value("tensor", np.frombuffer(tensor.data, dtype=dtype).reshape(shape))


def _read_text(tensor: pb.Tensor, shape: tuple[int, ...]) -> Value:
    num_elements = len(tensor.bytes_val)
    prefix = "Instance tensor check failed: bytes or string type"
    if num_elements == 1 and shape not in ((), (1,)):
        raise CallError(
            INVALID_INPUTS,
            f"{prefix} input  shape can only be (1,) or empty, but given shape is {list(shape)}",
        )
    if num_elements == 0 or (num_elements > 1 and math.prod(shape) != num_elements):
        raise CallError(INVALID_INPUTS, f"{prefix} shape batch size can only be 1")
    array = np.empty(num_elements, dtype=object)
    array[:] = list(tensor.bytes_val)
    return Value("string" if tensor.dtype == pb.MS_STRING else "bytes", array.reshape(shape))


def _read_input(name: str, tensor: pb.Tensor) -> Value:
    try:
        return read_tensor(tensor)
    except CallError as error:
        raise CallError(error.code, f"Instances input {name} check failed, detail: {error.message}") from None


def _to_bytes(item: Any) -> bytes:
    return item if isinstance(item, bytes) else str(item).encode()


def _add_failure(reply: pb.PredictReply, failure: Failure) -> None:
    reply.error_msg.add(error_code=failure.code, error_msg=failure.message.encode(errors="replace"))
