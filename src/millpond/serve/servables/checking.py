"""Whether a request fits a servable's configuration, and what is said when it does not.

The texts, and which of several faults is named first, are those of a Triton server, because clients' tests compare
them. One pass of cheap comparisons decides; only a request that fails is looked at again to find the words.
"""

from __future__ import annotations

from collections.abc import Iterable

from millpond.serve.servables.config import ServableConfig
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.messages import InferRequest
from millpond.serve.servables.tensors import TensorSpec

_BATCH_NOTE = (
    "NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be prepended to each "
    "input shape. If you want to specify the full shape including the batch dim in your input dims config, try setting "
    "max_batch_size to zero. See the model configuration docs for more info on max_batch_size."
)


def prefix_of(request: InferRequest) -> str:
    """How an error's text names the request it belongs to."""
    return f"[request id: {request.request_id or '<id_unknown>'}] "


class RequestChecker:
    """Checks requests against one configuration.

    Args:
        config: Complete: all inputs and outputs are known.
    """

    def __init__(self, config: ServableConfig) -> None:
        self._name = config.name
        self._max_batch_size = config.max_batch_size
        self._specs = config.inputs
        self._inputs = {spec.name: spec for spec in config.inputs}
        self._outputs = frozenset(spec.name for spec in config.outputs)
        self._num_required = sum(not spec.optional for spec in config.inputs)
        self._expected = {spec.name: (spec.datatype, spec.dims, len(spec.dims)) for spec in config.inputs}
        self._first_dim = 1 if config.max_batch_size > 0 else 0
        self._last_wanted: tuple[str, ...] = ()  # outputs that were right

    def check(self, request: InferRequest) -> int:
        """Returns the request's rows: its batch size, 1 for a servable without a batch dimension.

        Raises:
            ServableError: It does not fit; code "invalid_argument".
        """
        alike = request.alike
        if alike is not None and alike.checker is self:
            return alike.rows
        rows = self._rows_when_right(request)
        if rows < 0:
            raise self._fault(request)
        if alike is not None:
            alike.checker, alike.rows = self, rows
        return rows

    def _rows_when_right(self, request: InferRequest) -> int:
        wanted = request.outputs
        if wanted is not None and wanted is not self._last_wanted:
            if not self._outputs.issuperset(wanted):
                return -1
            self._last_wanted = wanted
        inputs = request.inputs
        if not self._num_required <= len(inputs) <= len(self._specs):
            return -1
        first = self._first_dim
        rows = -1
        num_required = 0
        for name, tensor in inputs.items():
            expected = self._expected.get(name)
            if expected is None or expected[0] != tensor.datatype:
                return -1
            shape = tensor.array.shape
            dims = shape[1:] if first else shape
            if dims != expected[1]:
                if len(shape) != expected[2] + first:
                    return -1
                for have, want in zip(dims, expected[1], strict=True):
                    if have != want and want != -1:
                        return -1
            elif len(shape) != expected[2] + first:
                return -1
            if first:
                if rows == -1:
                    rows = shape[0]
                elif rows != shape[0]:
                    return -1
            num_required += not self._inputs[name].optional
        if num_required != self._num_required or (first and rows > self._max_batch_size):
            return -1
        return rows if rows > 0 else 1

    def _fault(self, request: InferRequest) -> ServableError:
        for name in sorted(set(request.outputs or ())):
            if name not in self._outputs:
                return _invalid(f"unexpected inference output '{name}' for model '{self._name}'")
        return self._fault_of_names(request) or self._fault_of_tensors(request)

    def _fault_of_names(self, request: InferRequest) -> ServableError | None:
        names = list(reversed(request.inputs))  # the order in which Triton's table of inputs is walked
        missing = [spec.name for spec in self._specs if not spec.optional and spec.name not in request.inputs]
        if self._num_required <= len(names) <= len(self._specs):
            unknown = next((name for name in names if name not in self._inputs), None)
            if unknown is not None:
                return _invalid(f"unexpected inference input '{unknown}' for model '{self._name}'")
            if not missing:
                return None
        if len(self._specs) == self._num_required:
            expected = f"expected {len(self._specs)} inputs"
        else:
            expected = f"expected number of inputs between {self._num_required} and {len(self._specs)}"
        # NOTE: with nothing missing Triton loses the opening bracket; clients compare this text, so it is kept.
        lacking = _listed(missing) if missing else "]"
        return _invalid(
            f"{prefix_of(request)}{expected} but got {len(names)} inputs for model '{self._name}'. "
            f"Got input(s) {_listed(names)}, but missing required input(s) {lacking}. "
            "Please provide all required input(s)."
        )

    def _fault_of_tensors(self, request: InferRequest) -> ServableError:
        prefix, model = prefix_of(request), self._name
        tensors = list(reversed(request.inputs.items()))
        if self._first_dim:
            rows = 0
            for name, tensor in tensors:
                shape = tensor.array.shape
                if not shape:
                    return _invalid(
                        f"{prefix}input '{name}' has no shape but model requires batch dimension for '{model}'"
                    )
                if rows and shape[0] != rows:
                    return _invalid(f"{prefix}input '{name}' batch size does not match other inputs for '{model}'")
                rows = shape[0]
            if rows > self._max_batch_size:
                return _invalid(f"{prefix}inference request batch-size must be <= {self._max_batch_size} for '{model}'")
        for name, tensor in tensors:
            spec = self._inputs[name]
            if tensor.datatype != spec.datatype:
                return _invalid(
                    f"{prefix}inference input '{name}' data-type is '{tensor.datatype}', "
                    f"but model '{model}' expects '{spec.datatype}'"
                )
            if not _fits(tensor.array.shape[self._first_dim :], spec):
                expected = (-1, *spec.dims) if self._first_dim else spec.dims
                return _invalid(
                    f"{prefix}unexpected shape for input '{name}' for model '{model}'. "
                    f"Expected {_dims(expected)}, got {_dims(tensor.array.shape)}. "
                    + (_BATCH_NOTE if self._first_dim else "")
                )
        # Only inputs of zero rows beside inputs with rows come here.
        return _invalid(f"{prefix}input '{tensors[-1][0]}' batch size does not match other inputs for '{model}'")


def _fits(shape: tuple[int, ...], spec: TensorSpec) -> bool:
    return len(shape) == len(spec.dims) and all(
        have == want or want == -1 for have, want in zip(shape, spec.dims, strict=True)
    )


def _listed(names: Iterable[str]) -> str:
    return "[" + ",".join(f"'{name}'" for name in names) + "]"


def _dims(dims: Iterable[int]) -> str:
    return "[" + ",".join(map(str, dims)) + "]"


def _invalid(message: str) -> ServableError:
    return ServableError("invalid_argument", message)
