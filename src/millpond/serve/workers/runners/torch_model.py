"""TorchScript files and exported programs by torch.

Arguments: `file`, `name`, `parameters` (thread counts as in Triton's back end), `inputs` and `outputs` (names of the
configuration; empty where the file says them).
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.tensors import NUMPY_TYPES, Tensor
from millpond.serve.workers.host import Host
from millpond.serve.workers.runners.array_model import ArrayModel, TensorInfo
from millpond.serve.workers.runners.model_parameters import thread_count

_POSITION = re.compile(r"^.+__(\d+)$")
_DATATYPES = {
    "bool": "BOOL",
    "float16": "FP16",
    "bfloat16": "BF16",
    "float32": "FP32",
    "float64": "FP64",
    **{f"{sign}int{bits}": f"{sign.upper()}INT{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


def load(host: Host, arguments: dict[str, Any]) -> ArrayModel:
    """Loads the file.

    Raises:
        ServableError: torch cannot load it, or names do not say positions.
    """
    torch = importlib.import_module("torch")
    if (threads := thread_count(arguments["parameters"], "INTRA_OP_THREAD_COUNT")) is not None:
        torch.set_num_threads(threads)
    if (threads := thread_count(arguments["parameters"], "INTER_OP_THREAD_COUNT")) is not None:
        torch.set_num_interop_threads(threads)
    file = arguments["file"]
    try:
        graph = _exported(torch, file) if file.endswith(".pt2") else _scripted(torch, file)
    except ServableError:
        raise
    except Exception as error:
        reason = str(error).replace(file, "the file").strip().splitlines()
        text = f"torch cannot load the model: {type(error).__name__}: {reason[0] if reason else ''}"
        raise ServableError("internal", text) from error
    graph.name_tensors(arguments["inputs"], arguments["outputs"])
    return ArrayModel(graph, arguments["name"])


def positions(names: Sequence[str], parameters: Sequence[str], what: str) -> list[int]:
    """Returns which position each name stands for: that of the parameter of this name, or the number after `__`.

    Raises:
        ServableError: Names do not say it, or two say the same.
    """
    if parameters and all(name in parameters for name in names):
        return [list(parameters).index(name) for name in names]
    found = []
    for name in names:
        match = _POSITION.match(name)
        if match is None:
            known = f" or be one of {', '.join(parameters)}" if parameters else ""
            raise ServableError("internal", f"{what} '{name}' must be named <name>__<index>{known}.")
        found.append(int(match[1]))
    if sorted(found) != list(range(len(found))):
        raise ServableError("internal", f"The {what}s {', '.join(names)} do not number the positions from 0.")
    return found


class TorchGraph:
    """A module that takes and gives tensors by position.

    Args:
        torch: The package.
        module: Callable with tensors.
        parameters: Names of what it takes.
        described: What the file says of inputs and outputs, None when nothing.
    """

    def __init__(
        self,
        torch: Any,
        module: Any,
        parameters: Sequence[str],
        described: tuple[list[TensorInfo], list[TensorInfo]] | None = None,
    ) -> None:
        self._torch = torch
        self._module = module
        self._parameters = list(parameters)
        self.inputs: list[TensorInfo] | None = None if described is None else described[0]
        self.outputs: list[TensorInfo] | None = None if described is None else described[1]
        self._input_names: list[str] = []
        self._output_names: list[str] = []

    def name_tensors(self, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        """Gives positions the names of a configuration; the file's own, or `INPUT__0` and so on, without one."""
        self._input_names = self._named(inputs, self.inputs, self._parameters, "input")
        self._output_names = self._named(outputs, self.outputs, [], "output")
        if self.inputs is not None and self.outputs is not None:
            self.inputs = [(name, *info[1:]) for name, info in zip(self._input_names, self.inputs, strict=True)]
            self.outputs = [(name, *info[1:]) for name, info in zip(self._output_names, self.outputs, strict=True)]

    def run(self, tensors: Mapping[str, Tensor], wanted: list[str] | None) -> list[Tensor]:
        """Returns the wanted outputs, or all."""
        torch = self._torch
        arguments = [self._to_torch(tensors[name]) for name in self._input_names if name in tensors]
        with torch.inference_mode():
            results = self._module(*arguments)
        if not isinstance(results, list | tuple):
            results = (results,)
        if len(results) < len(self._output_names):
            raise ServableError(
                "internal", f"The module returned {len(results)} tensors; {len(self._output_names)} outputs are named."
            )
        named = zip(self._output_names, results, strict=False)
        return [self._from_torch(name, result) for name, result in named if wanted is None or name in wanted]

    def _named(
        self, names: Sequence[str], described: list[TensorInfo] | None, parameters: list[str], what: str
    ) -> list[str]:
        if not names:
            return [name for name, _, _ in described or ()]
        placed = dict(zip(positions(names, parameters, what), names, strict=True))
        return [placed[position] for position in sorted(placed)]

    def _to_torch(self, tensor: Tensor) -> Any:
        if tensor.datatype == "BYTES":
            raise ServableError("unsupported", f"Input '{tensor.name}' is text, which torch models do not take here.")
        array = tensor.array
        made = self._torch.from_numpy(array if array.flags.writeable else array.copy())
        return made.view(self._torch.bfloat16) if tensor.datatype == "BF16" else made

    def _from_torch(self, name: str, result: Any) -> Tensor:
        if not isinstance(result, self._torch.Tensor):
            raise ServableError("internal", f"Output '{name}' is a {type(result).__name__}, not a tensor.")
        result = result.detach().cpu()
        datatype = _DATATYPES.get(str(result.dtype).removeprefix("torch."))
        if datatype is None:
            raise ServableError("internal", f"Output '{name}' is of type {result.dtype}, which cannot be sent.")
        if datatype == "BF16":
            result = result.contiguous().view(self._torch.uint16)
        array = result.numpy()
        assert array.dtype == NUMPY_TYPES[datatype]
        return Tensor(name, datatype, np.asarray(array))


def _scripted(torch: Any, file: str) -> TorchGraph:
    module = torch.jit.load(file, map_location="cpu").eval()
    parameters = [argument.name for argument in module.forward.schema.arguments[1:]]
    return TorchGraph(torch, module, parameters)


def _exported(torch: Any, file: str) -> TorchGraph:
    importlib.import_module("torch.export")
    program = torch.export.load(file)
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    signature = program.graph_signature
    inputs = [_info(torch, f"INPUT__{n}", values.get(name)) for n, name in enumerate(signature.user_inputs)]
    outputs = [_info(torch, f"OUTPUT__{n}", values.get(name)) for n, name in enumerate(signature.user_outputs)]
    return TorchGraph(torch, program.module(), list(signature.user_inputs), (inputs, outputs))


def _info(torch: Any, name: str, value: Any) -> TensorInfo:
    if not isinstance(value, torch.Tensor):
        raise ServableError("unsupported", f"'{name}' of the exported program is no tensor.")
    datatype = _DATATYPES.get(str(value.dtype).removeprefix("torch."))
    if datatype is None:
        raise ServableError("unsupported", f"'{name}' is of type {value.dtype}, which cannot be served.")
    return name, datatype, [size if isinstance(size, int) else -1 for size in value.shape]
