"""Tensors that stand in a model configuration: datatypes, warm-up samples, initial states of sequences.

Called by `triton_config`. Data files hold raw values as on the wire, so that they are read as a request's would be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from millpond.serve.kserve.raw import decode_bytes_tensor
from millpond.serve.proto import model_config_pb2 as pb
from millpond.serve.servables.config import WarmupSample
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.tensors import NUMPY_TYPES, Tensor

_MAX_ELEMENTS = 1 << 28


def datatype_name(number: int) -> str:
    """Returns a datatype of the protocol for one of the configuration; "" for none."""
    if number == pb.TYPE_INVALID:
        return ""
    return "BYTES" if number == pb.TYPE_STRING else pb.DataType.Name(number).removeprefix("TYPE_")


def datatype_number(name: str) -> int:
    """Returns the configuration's number of a datatype."""
    return int(pb.DataType.Value("TYPE_STRING" if name == "BYTES" else f"TYPE_{name}"))


def warmup_samples(
    messages: Iterable[pb.ModelWarmup], read_file: Callable[[str], bytes] | None
) -> tuple[WarmupSample, ...]:
    """Makes the tensors of warm-up samples."""
    return tuple(
        WarmupSample(
            message.name,
            message.batch_size,
            message.count,
            tuple(_warmup_tensor(name, message.inputs[name], read_file) for name in sorted(message.inputs)),
        )
        for message in messages
    )


def initial_state(state: pb.ModelSequenceBatching.State, read_file: Callable[[str], bytes] | None) -> Tensor | None:
    """Makes the tensor that a sequence's state starts with; None when the configuration names none."""
    if not state.initial_state:
        return None
    first = state.initial_state[0]
    dims = [max(1, dim) for dim in first.dims]
    datatype = datatype_name(first.data_type)
    if first.WhichOneof("state_data") == "data_file":
        array = _from_file(datatype, dims, f"initial_state/{first.data_file}", read_file)
    else:
        array = _zeros(datatype, dims)
    return Tensor(state.input_name, datatype, array)


def _warmup_tensor(name: str, message: pb.ModelWarmup.Input, read_file: Callable[[str], bytes] | None) -> Tensor:
    datatype, dims = datatype_name(message.data_type), list(message.dims)
    if datatype not in NUMPY_TYPES or any(dim < 0 for dim in dims):
        raise ServableError(
            "invalid_argument", f"warm-up input '{name}' must specify 'data_type' and dimensions of 0 or more"
        )
    source = message.WhichOneof("input_data_type")
    if source is None:
        raise ServableError("invalid_argument", f"warm-up input '{name}' must specify where its data comes from")
    if source == "input_data_file":
        return Tensor(name, datatype, _from_file(datatype, dims, f"warmup/{message.input_data_file}", read_file))
    array = _zeros(datatype, dims)
    if source == "random_data" and array.dtype.kind in "fiu" and datatype != "BF16":
        array = np.random.default_rng(0).integers(0, 100, dims).astype(array.dtype)
    return Tensor(name, datatype, array)


def _zeros(datatype: str, dims: Sequence[int]) -> NDArray[np.generic]:
    if math.prod(dims) > _MAX_ELEMENTS:
        raise ServableError("invalid_argument", f"shape {list(dims)} has more than {_MAX_ELEMENTS} elements")
    if datatype == "BYTES":
        array = np.empty(dims, dtype=object)
        array.fill(b"")
        return array
    return np.zeros(dims, dtype=NUMPY_TYPES[datatype])


def _from_file(
    datatype: str, dims: Sequence[int], path: str, read_file: Callable[[str], bytes] | None
) -> NDArray[np.generic]:
    if read_file is None:
        raise ServableError("invalid_argument", f"the configuration names '{path}', but comes without a folder")
    data = read_file(path)
    if datatype == "BYTES":
        return decode_bytes_tensor(data, math.prod(dims), path).reshape(dims)
    kind = NUMPY_TYPES[datatype]
    if len(data) != math.prod(dims) * kind.itemsize:
        raise ServableError(
            "invalid_argument",
            f"'{path}' has {len(data)} bytes, {datatype} of shape {list(dims)} takes {math.prod(dims) * kind.itemsize}",
        )
    return np.frombuffer(data, kind).reshape(dims)
