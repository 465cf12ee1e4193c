"""`Tensor` of the API, and the conversions of datatypes and elements that models call by name."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millpond.compat.triton_python_backend_utils.errors import TritonModelException
from millpond.serve.servables import tensors
from millpond.serve.workers.tensor_wire import decode_elements, encode_elements

_NUMBERS = (
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES",
    "BF16",
)  # fmt: skip
TRITON_STRING_TO_NUMPY: dict[str, Any] = {
    "TYPE_BOOL": bool,
    "TYPE_UINT8": np.uint8,
    "TYPE_UINT16": np.uint16,
    "TYPE_UINT32": np.uint32,
    "TYPE_UINT64": np.uint64,
    "TYPE_INT8": np.int8,
    "TYPE_INT16": np.int16,
    "TYPE_INT32": np.int32,
    "TYPE_INT64": np.int64,
    "TYPE_FP16": np.float16,
    "TYPE_FP32": np.float32,
    "TYPE_FP64": np.float64,
    "TYPE_STRING": np.object_,
}
_CPU_DEVICE = (1, 0)  # DLPack's kind and number


class Tensor:
    """A named array.

    Args:
        name: The input's or output's name.
        numpy_array: Of any numpy type that has a datatype; text and bytes are BYTES.

    Raises:
        TritonModelException: The array's type has no datatype.
    """

    __slots__ = ("_tensor",)

    def __init__(self, name: str, numpy_array: NDArray[Any]) -> None:
        if not isinstance(numpy_array, np.ndarray):
            raise TritonModelException(f"Tensor '{name}' needs a numpy array, not {type(numpy_array).__name__}")
        try:
            datatype = tensors.datatype_of(numpy_array)
        except ValueError as error:
            raise TritonModelException(f"Tensor '{name}': {error}") from None
        if not numpy_array.dtype.isnative:
            numpy_array = numpy_array.astype(numpy_array.dtype.newbyteorder("="))
        self._tensor = tensors.Tensor(name, datatype, numpy_array)

    @classmethod
    def wrap(cls, tensor: tensors.Tensor) -> Tensor:
        """Returns the API's face of a tensor."""
        made = cls.__new__(cls)
        made._tensor = tensor
        return made

    @property
    def unwrapped(self) -> tensors.Tensor:
        """The tensor behind the face."""
        return self._tensor

    def name(self) -> str:
        """Returns the name."""
        return self._tensor.name

    def as_numpy(self) -> NDArray[Any]:
        """Returns the array; BYTES are an object array of `bytes`."""
        if self._tensor.datatype == "BF16":
            raise TritonModelException("numpy has no BF16: use to_dlpack() for this tensor")
        return self._tensor.array

    def shape(self) -> list[int]:
        """Returns the sizes."""
        return list(self._tensor.array.shape)

    def triton_dtype(self) -> int:
        """Returns the datatype's number in Triton's C API."""
        return _NUMBERS.index(self._tensor.datatype) + 1

    def is_cpu(self) -> bool:
        """Whether the tensor is in main memory; here it always is."""
        return True

    def to_dlpack(self) -> Any:
        """Returns a DLPack capsule on the same memory."""
        return self.__dlpack__()

    @staticmethod
    def from_dlpack(name: str, tensor: Any) -> Tensor:
        """Returns a tensor on the memory of a DLPack capsule or of an object with `__dlpack__`.

        Raises:
            TritonModelException: It is not in main memory, or not contiguous data of a known datatype.
        """
        if str(getattr(tensor, "dtype", "")) == "torch.bfloat16":
            torch = importlib.import_module("torch")
            raw = np.asarray(tensor.detach().contiguous().view(torch.uint16))
            return Tensor.wrap(tensors.Tensor(name, "BF16", raw))
        source = tensor if hasattr(tensor, "__dlpack__") else _Capsule(tensor)
        try:
            return Tensor(name, np.from_dlpack(source))
        except (BufferError, RuntimeError, TypeError) as error:
            raise TritonModelException(f"Tensor '{name}' cannot be taken from DLPack: {error}") from error

    def __dlpack__(self, *, stream: Any = None, **options: Any) -> Any:
        if self._tensor.datatype == "BYTES":
            raise TritonModelException("DLPack does not support string tensors.")
        if self._tensor.datatype == "BF16":
            torch = importlib.import_module("torch")
            return torch.from_numpy(self._tensor.array).view(torch.bfloat16).__dlpack__()
        array: Any = self._tensor.array
        return array.__dlpack__(stream=stream, **options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return _CPU_DEVICE


class _Capsule:
    """A bare capsule as an object with `__dlpack__`, which is what numpy takes."""

    def __init__(self, capsule: Any) -> None:
        self._capsule = capsule

    def __dlpack__(self, **_: Any) -> Any:
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return _CPU_DEVICE


def serialize_byte_tensor(input_tensor: NDArray[Any]) -> bytes | tuple[()] | None:
    """Returns length-prefixed elements; () for no elements and None for an array of anything but text or bytes."""
    if input_tensor.size == 0:
        return ()
    if input_tensor.dtype != np.object_ and input_tensor.dtype.type is not np.bytes_:
        return None
    return encode_elements(input_tensor)


def deserialize_bytes_tensor(encoded_tensor: bytes) -> NDArray[np.object_]:
    """Returns length-prefixed elements as a flat array of `bytes`."""
    return decode_elements(bytes(encoded_tensor), None)


def triton_string_to_numpy(triton_type_string: str) -> Any:
    """Returns the numpy type of a name such as "TYPE_FP32"."""
    return TRITON_STRING_TO_NUMPY[triton_type_string]


def triton_to_numpy_type(data_type: int) -> Any:
    """Returns the numpy type of a datatype's number, None for one without."""
    if not 1 <= data_type <= len(_NUMBERS) or _NUMBERS[data_type - 1] == "BF16":
        return None
    return tensors.NUMPY_TYPES[_NUMBERS[data_type - 1]].type


def numpy_to_triton_type(data_type: Any) -> int | None:
    """Returns the number of a numpy type's datatype, None when it has none."""
    try:
        return _NUMBERS.index(tensors.datatype_of(np.empty(0, data_type))) + 1
    except (TypeError, ValueError):
        return None
