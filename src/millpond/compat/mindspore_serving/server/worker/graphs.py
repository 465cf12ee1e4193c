"""Model files as graphs that take and give numpy arrays: ONNX, TorchScript (.pt), torch.export (.pt2).

A `.mindir` is MindSpore's own; the file of the same name in one of these forms is loaded in its place. Imports torch or
onnxruntime when the first such file is loaded. Runs in the worker; knows no batches.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

_SUFFIXES = (".onnx", ".pt2", ".pt")
_FOREIGN = (".mindir", ".ms", ".om", ".air")
_ONNX_TYPES = {
    "tensor(bool)": "bool",
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    **{f"tensor({sign}int{bits})": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


@dataclass(frozen=True, slots=True)
class ArrayInfo:
    """An input or output; -1 is a dimension of any size. `dtype` None is unknown."""

    dtype: np.dtype[Any] | None
    shape: tuple[int, ...] | None


class Graph(Protocol):
    """A loaded file. `inputs` and `outputs` are None where the file does not say."""

    inputs: tuple[ArrayInfo, ...]
    num_outputs: int | None

    def run(self, arrays: Sequence[Any]) -> list[Any]:
        """Returns the outputs."""


def find_file(folder: Path, name: str) -> Path:
    """Returns the file to load for a declared name.

    Raises:
        RuntimeError: There is none of a form that can be loaded; says how to make one.
    """
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise RuntimeError(f"model file '{name}' is outside of the version's folder")
    if path.suffix.lower() in _SUFFIXES and path.is_file():
        return path
    if path.suffix.lower() in (*_FOREIGN, ""):
        for suffix in _SUFFIXES:
            beside = path.with_suffix(suffix)
            if beside.is_file():
                return beside
    if not path.is_file() and path.suffix.lower() not in _FOREIGN:
        raise RuntimeError(f"model file '{name}' does not exist")
    stem = Path(name).stem
    raise RuntimeError(
        f"'{name}' is in MindSpore's own format, which only MindSpore runs. Export the network again, with "
        f"mindspore.export(net, *inputs, file_name='{stem}', file_format='ONNX'), and put {stem}.onnx beside it; the "
        f"servable's file may go on naming '{name}'"
    )


def load_graph(path: Path, num_threads: int) -> Graph:
    """Loads a file.

    Raises:
        RuntimeError: It cannot be loaded.
    """
    try:
        if path.suffix.lower() == ".onnx":
            return _OnnxGraph(path, num_threads)
        importlib.import_module("torch").set_num_threads(num_threads)
        return _load_exported(path) if path.suffix.lower() == ".pt2" else _load_script(path)
    except ImportError as error:
        raise RuntimeError(f"{path.name} needs a package that is not installed: {error}") from None
    except Exception as error:
        raise RuntimeError(f"{path.name} cannot be loaded: {error}") from None


class _OnnxGraph:
    def __init__(self, path: Path, num_threads: int) -> None:
        runtime = importlib.import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = num_threads
        # Between two batches its threads would take the processors that the requests need.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._names = [item.name for item in self._session.get_inputs()]
        self.inputs = tuple(_onnx_info(item) for item in self._session.get_inputs())
        self.num_outputs: int | None = len(self._session.get_outputs())

    def run(self, arrays: Sequence[Any]) -> list[Any]:
        outputs: list[Any] = self._session.run(None, dict(zip(self._names, arrays, strict=True)))
        return outputs


def _onnx_info(item: Any) -> ArrayInfo:
    dtype = _ONNX_TYPES.get(item.type)
    if dtype is None:
        raise RuntimeError(f"input {item.name} is of type {item.type}, which is not supported")
    shape = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in item.shape)
    return ArrayInfo(np.dtype(dtype), shape)


class _TorchGraph:
    def __init__(self, module: Any, inputs: tuple[ArrayInfo, ...], num_outputs: int | None) -> None:
        self._torch = importlib.import_module("torch")
        self._module = module
        self.inputs = inputs
        self.num_outputs = num_outputs

    def run(self, arrays: Sequence[Any]) -> list[Any]:
        torch = self._torch
        with torch.inference_mode():
            result = self._module(*[torch.from_numpy(np.require(array, requirements=["C", "W"])) for array in arrays])
        items = result if isinstance(result, (tuple, list)) else (result,)
        return [item.detach().cpu().numpy() for item in items]


def _load_script(path: Path) -> Graph:
    torch = importlib.import_module("torch")
    module = torch.jit.load(str(path), map_location="cpu").eval()
    arguments = module.forward.schema.arguments[1:]
    return _TorchGraph(module, tuple(ArrayInfo(None, None) for _ in arguments), None)


def _load_exported(path: Path) -> Graph:
    torch = importlib.import_module("torch")
    importlib.import_module("torch.export")
    program = torch.export.load(str(path))
    by_name = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    inputs = tuple(_torch_info(by_name[name]) for name in program.graph_signature.user_inputs)
    return _TorchGraph(program.module(), inputs, len(program.graph_signature.user_outputs))


def _torch_info(value: Any) -> ArrayInfo:
    dtype = np.dtype(str(value.dtype).removeprefix("torch."))
    return ArrayInfo(dtype, tuple(size if isinstance(size, int) else -1 for size in value.shape))
