"""ONNX files by onnxruntime. Arguments: `file`, `name`, `parameters` (thread counts as in Triton's back end)."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.tensors import NUMPY_TYPES, Tensor
from millpond.serve.workers.host import Host
from millpond.serve.workers.runners.array_model import ArrayModel, TensorInfo
from millpond.serve.workers.runners.model_parameters import thread_count

_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
    **{f"tensor({sign}int{bits})": f"{sign.upper()}INT{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


def load(host: Host, arguments: dict[str, Any]) -> ArrayModel:
    """Loads the file.

    Raises:
        ServableError: onnxruntime is not installed, or cannot load it.
    """
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise ServableError(
            "unsupported", "ONNX models need onnxruntime: install millpond with the extra 'onnx'."
        ) from error
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")  # see `resting`
    if (threads := thread_count(arguments["parameters"], "intra_op_thread_count")) is not None:
        options.intra_op_num_threads = threads
    if (threads := thread_count(arguments["parameters"], "inter_op_thread_count")) is not None:
        options.inter_op_num_threads = threads
    try:
        session = runtime.InferenceSession(arguments["file"], options, providers=["CPUExecutionProvider"])
    except Exception as error:
        text = str(error).replace(arguments["file"], "model.onnx")
        raise ServableError("internal", f"onnxruntime cannot load the model: {text}") from error
    return ArrayModel(OnnxGraph(session), arguments["name"])


class OnnxGraph:
    """A session."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.inputs: list[TensorInfo] | None = [_info(item) for item in session.get_inputs()]
        self.outputs: list[TensorInfo] | None = [_info(item) for item in session.get_outputs()]

    def run(self, tensors: Mapping[str, Tensor], wanted: list[str] | None) -> list[Tensor]:
        """Returns the wanted outputs, or all."""
        names = [name for name, _, _ in self.outputs or () if wanted is None or name in wanted]
        feeds = {name: _as_input(tensor) for name, tensor in tensors.items()}
        results = self._session.run(names, feeds)
        return [_as_output(name, result) for name, result in zip(names, results, strict=True)]


def _info(item: Any) -> TensorInfo:
    datatype = _DATATYPES.get(item.type)
    if datatype is None:
        raise ServableError("unsupported", f"Tensor '{item.name}' is of type {item.type}, which cannot be served.")
    return item.name, datatype, [size if isinstance(size, int) and size >= 0 else -1 for size in item.shape]


def _as_input(tensor: Tensor) -> Any:
    if tensor.datatype != "BYTES":
        return tensor.array
    try:
        texts = [item.decode() for item in tensor.array.ravel().tolist()]
    except UnicodeDecodeError:
        raise ServableError("invalid_argument", f"Input '{tensor.name}' is not UTF-8; ONNX models take text.") from None
    return np.array(texts, np.object_).reshape(tensor.array.shape)


def _as_output(name: str, result: Any) -> Tensor:
    if result.dtype.kind in "OSU":
        return Tensor(name, "BYTES", np.array(result, np.object_))
    datatype = next(kind for kind, numpy_type in NUMPY_TYPES.items() if numpy_type == result.dtype and kind != "BF16")
    return Tensor(name, datatype, result)
