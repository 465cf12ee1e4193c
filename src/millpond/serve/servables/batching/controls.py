"""The tensors that a sequence batcher adds to a request: control signals and the sequence's kept state."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np

from millpond.serve.servables.config import SequenceBatching, ServableConfig
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.messages import InferRequest
from millpond.serve.servables.tensors import NUMPY_TYPES, Tensor


class ControlTensors:
    """Makes the added tensors of one servable.

    Args:
        config: The servable's.
        batching: Its controls and states.
    """

    def __init__(self, config: ServableConfig, batching: SequenceBatching) -> None:
        self._model = config.name
        self._head = (1,) if config.max_batch_size > 0 else ()
        self._signals = [control for control in batching.controls if control.kind != "corrid"]
        self._ids = [control for control in batching.controls if control.kind == "corrid"]
        self._states = batching.states
        self._state_outputs = tuple(state.output for state in batching.states)
        self._own_outputs = tuple(spec.name for spec in config.outputs)
        self.has_ready = any(control.kind == "ready" for control in self._signals)
        self.has_states = bool(self._states)
        self._made = {
            (control.name, control.kind, value): Tensor(
                control.name,
                control.datatype,
                np.full((*self._head, 1), control.values[value], NUMPY_TYPES[control.datatype]),
            )
            for control in self._signals
            for value in (False, True)
        }

    def check_key(self, key: int | str) -> None:
        """Refuses a sequence id that the model cannot be told.

        Raises:
            ServableError: Its type does not fit.
        """
        for control in self._ids:
            if (control.datatype == "BYTES") != isinstance(key, str):
                kind = "a string" if control.datatype == "BYTES" else "an integer"
                raise ServableError(
                    "invalid_argument",
                    f"inference request to model '{self._model}' must specify {kind} correlation ID",
                )
            if isinstance(key, int):
                limits = np.iinfo(NUMPY_TYPES[control.datatype].name)
                if not limits.min <= key <= limits.max:
                    raise ServableError(
                        "invalid_argument",
                        f"the correlation ID of a request to model '{self._model}' is not in the range of "
                        f"{control.datatype}",
                    )

    def add(
        self,
        request: InferRequest,
        key: int | str,
        states: Mapping[str, Tensor],
        *,
        ready: bool,
        start: bool,
        end: bool,
    ) -> InferRequest:
        """Returns the request as the model is to see it."""
        inputs = dict(request.inputs)
        flags = {"ready": ready, "start": start, "end": end}
        for control in self._signals:
            made = self._made[(control.name, control.kind, flags[control.kind])]
            if control.name not in inputs or flags[control.kind]:
                inputs[control.name] = made
        for control in self._ids:
            array = np.empty((*self._head, 1), NUMPY_TYPES[control.datatype])
            array[...] = str(key).encode() if control.datatype == "BYTES" else int(key)
            inputs[control.name] = Tensor(control.name, control.datatype, array)
        for state in self._states:
            kept = states.get(state.output)
            inputs[state.input] = (
                self._initial(state.input) if kept is None else msgspec.structs.replace(kept, name=state.input)
            )
        outputs = request.outputs
        if outputs is not None:
            outputs = tuple(dict.fromkeys((*outputs, *self._state_outputs)))
        return msgspec.structs.replace(request, inputs=inputs, outputs=outputs)

    def keep(self, asked: InferRequest, outputs: dict[str, Tensor], states: dict[str, Tensor]) -> dict[str, Tensor]:
        """Takes the states out of a response's outputs; returns the outputs that are the client's."""
        if not self._states:
            return outputs
        for name in self._state_outputs:
            if name in outputs:
                # The back end may use the memory of an output again; a state has to outlive it.
                states[name] = msgspec.structs.replace(outputs[name], array=outputs[name].array.copy())
        wanted = asked.outputs if asked.outputs is not None else self._own_outputs
        return {name: tensor for name, tensor in outputs.items() if name in wanted}

    def _initial(self, name: str) -> Tensor:
        state = next(state for state in self._states if state.input == name)
        if state.initial is not None:
            array = state.initial.array.reshape((*self._head, *state.initial.array.shape))
            return Tensor(name, state.datatype, array)
        shape = (*self._head, *(max(size, 0) if size != -1 else 1 for size in state.dims))
        if state.datatype == "BYTES":
            return Tensor(name, state.datatype, np.full(shape, b"", object))
        return Tensor(name, state.datatype, np.zeros(shape, NUMPY_TYPES[state.datatype]))
