"""`Ensemble`: a servable whose work is calls of other servables, joined by the names of tensors.

The scheduler of a servable with steps. A step starts as soon as the tensors it needs are there, so independent steps
run side by side; there is no task per request, each response moves its request on. Every response of a decoupled step
makes a branch of its own that goes through the steps behind it; branches answer in the order in which they began.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Protocol

from millpond.serve.servables.backend import ExecutionTiming
from millpond.serve.servables.calls import Call
from millpond.serve.servables.config import EnsembleStep, ServableConfig
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.messages import InferRequest, InferResponse
from millpond.serve.servables.tensors import Tensor

if TYPE_CHECKING:
    from millpond.serve.servables.servable import Servable

_MOST_WISHES = 256  # of different outputs whose steps are remembered


class Finder(Protocol):
    """Knows the other servables."""

    def find(self, name: str, version: int | None = None) -> Servable: ...


def check_ensemble(config: ServableConfig) -> None:
    """Checks that the steps' tensors fit together.

    Raises:
        ServableError: A tensor is needed that nothing makes, or two steps make the same one.
    """
    made = {spec.name for spec in config.inputs}
    for step in config.ensemble:
        for name in step.outputs.values():
            if name in made:
                raise ServableError("invalid_argument", f"in ensemble '{config.name}', tensor '{name}' is made twice")
            made.add(name)
    needed = [name for step in config.ensemble for name in step.inputs.values()]
    for name in (*needed, *(spec.name for spec in config.outputs)):
        if name not in made:
            raise ServableError(
                "invalid_argument", f"in ensemble '{config.name}', no input and no step makes the tensor '{name}'"
            )


class Ensemble:
    """Runs the steps of one ensemble.

    Args:
        servable: The ensemble itself.
        finder: Knows the servables of the steps, at the time of each request.
        max_depth: Most ensembles inside each other.
    """

    num_waiting = 0
    is_idle = True

    def __init__(self, servable: Servable, finder: Finder, *, max_depth: int) -> None:
        self.servable = servable
        self.finder = finder
        self.max_depth = max_depth
        self.steps = servable.config.ensemble
        self.asked = [tuple(step.outputs) for step in self.steps]  # of each step
        self.output_names = tuple(spec.name for spec in servable.config.outputs)
        self._needed: dict[tuple[str, ...], tuple[int, ...]] = {}

    def submit(self, call: Call) -> None:
        call.started_ns = self.servable.clock()
        _Run(self, call).start()

    def discard(self, call: Call) -> bool:
        return False

    def fail_waiting(self, error: ServableError) -> None:
        return None

    def poke(self) -> None:
        return None

    def owns(self, request: InferRequest) -> bool:
        return False

    def close(self) -> None:
        return None

    def steps_for(self, outputs: tuple[str, ...]) -> tuple[int, ...]:
        """The steps without which these outputs cannot be made, in their order."""
        found = self._needed.get(outputs)
        if found is None:
            names, steps = set(outputs), set[int]()
            for _ in self.steps:
                for index, step in enumerate(self.steps):
                    if index not in steps and not names.isdisjoint(step.outputs.values()):
                        steps.add(index)
                        names.update(step.inputs.values())
            if len(self._needed) >= _MOST_WISHES:
                self._needed.clear()
            found = self._needed[outputs] = tuple(sorted(steps))
        return found


class _Branch:
    """The tensors of a request on one way through the steps."""

    __slots__ = ("children", "is_answered", "is_forked", "num_open", "parent", "started", "tensors")

    def __init__(self, parent: _Branch | None, tensors: dict[str, Tensor], started: set[int]) -> None:
        self.parent = parent
        self.tensors = tensors
        self.started = started
        self.children: list[_Branch] = []
        self.num_open = 0  # calls of steps that have not given their final response
        self.is_forked = False  # a decoupled step was started here: the branches behind it answer instead
        self.is_answered = False

    def is_moving(self) -> bool:
        return bool(self.num_open) or (self.parent is not None and self.parent.is_moving())


class _StepSink:
    """Takes the responses of one call of a step."""

    __slots__ = ("branch", "is_decoupled", "run", "step")

    def __init__(self, run: _Run, branch: _Branch, step: EnsembleStep, is_decoupled: bool) -> None:
        self.run = run
        self.branch = branch
        self.step = step
        self.is_decoupled = is_decoupled

    def respond(self, response: InferResponse) -> None:
        self.run.took(self, response)


class _Run:
    """One request on its way through an ensemble; also what cancels it."""

    def __init__(self, ensemble: Ensemble, call: Call) -> None:
        self._ensemble = ensemble
        self._host = ensemble.servable
        self._call = call
        request = call.request
        self._wanted = request.outputs if request.outputs is not None else ensemble.output_names
        self._steps = ensemble.steps_for(self._wanted)
        specs = self._host.config.inputs
        self._absent: Collection[str] = ()
        if len(request.inputs) != len(specs):
            self._absent = {spec.name for spec in specs if spec.name not in request.inputs}
        self._root = _Branch(None, dict(request.inputs), set())
        self._open: dict[_StepSink, tuple[Servable, Call]] = {}
        self._held: dict[int, Servable] = {}  # by step: they stay until the request is answered, even when removed
        self._queue_ns = 0
        self._has_forked = False
        call.replica = self

    def start(self) -> None:
        try:
            if self._call.depth >= self._ensemble.max_depth:
                raise ServableError("invalid_argument", "ensembles are nested too deeply")
            for index in self._steps:
                step = self._ensemble.steps[index]
                servable = self._ensemble.finder.find(step.model, step.version)
                servable.hold()
                self._held[index] = servable
        except ServableError as error:
            self._fail(error)
            return
        self._advance(self._root)
        self._answer()

    def cancel(self, call: Call) -> None:
        self._finish(InferResponse(self._host.name, self._host.version))

    def took(self, sink: _StepSink, response: InferResponse) -> None:
        if self._call.done:
            return
        if response.error is not None:
            self._fail(response.error)
            return
        branch = sink.branch
        names = sink.step.outputs
        outputs = {}
        for name, tensor in response.outputs.items():
            if (own := names.get(name)) is not None:
                outputs[own] = Tensor(own, tensor.datatype, tensor.array)
        if response.final:
            branch.num_open -= 1
            opened = self._open.pop(sink, None)
            if opened is not None:
                self._queue_ns += max(0, opened[1].started_ns - opened[1].accepted_ns)
        if not sink.is_decoupled:
            self._put(branch, outputs)
        elif outputs or not response.final:
            child = _Branch(branch, {**branch.tensors, **outputs}, set(branch.started))
            branch.children.append(child)
            self._advance(child)
        self._answer()

    def _put(self, branch: _Branch, tensors: dict[str, Tensor]) -> None:
        branch.tensors.update(tensors)
        self._advance(branch)
        if branch.children:
            for child in list(branch.children):
                self._put(child, tensors)

    def _advance(self, branch: _Branch) -> None:
        """Starts the steps of a branch whose tensors are all there."""
        steps, started, tensors = self._ensemble.steps, branch.started, branch.tensors
        for index in self._steps:
            if index in started or self._call.done:
                continue
            step = steps[index]
            inputs: dict[str, Tensor] = {}
            for name, tensor_name in step.inputs.items():
                tensor = tensors.get(tensor_name)
                if tensor is not None:
                    inputs[name] = tensor if name == tensor_name else Tensor(name, tensor.datatype, tensor.array)
                elif tensor_name not in self._absent:
                    break
            else:
                started.add(index)
                self._start(index, branch, inputs)

    def _start(self, index: int, branch: _Branch, inputs: dict[str, Tensor]) -> None:
        step, servable = self._ensemble.steps[index], self._held[index]
        whole = self._call.request
        request = InferRequest(  # by hand: `replace` takes longer than all the rest of a step
            step.model,
            inputs,
            step.version,
            whole.method,
            whole.request_id,
            self._ensemble.asked[index],
            whole.parameters,
            whole.priority,
            whole.timeout_us,
            whole.sequence,
            self._host.clock(),
            None if whole.trace is None else whole.trace.child(),
        )
        try:
            sink = _StepSink(self, branch, step, servable.config.decoupled)
            branch.num_open += 1
            if sink.is_decoupled:
                branch.is_forked = self._has_forked = True
            call = servable.submit(request, sink, depth=self._call.depth + 1)
            if not call.done:
                self._open[sink] = (servable, call)
        except ServableError as error:
            if request.trace is not None:
                request.trace.drop()
            self._fail(error)

    def _answer(self) -> None:
        """Sends what is complete, in the order of the branches."""
        if self._call.done or not self._emit(self._root) or self._call.done:
            return
        self._finish(InferResponse(self._host.name, self._host.version))

    def _emit(self, branch: _Branch) -> bool:
        """Answers for a branch; True when nothing more comes of it."""
        if branch.is_forked:
            while branch.children:
                if not self._emit(branch.children[0]) or self._call.done:
                    return False
                branch.children.pop(0)
            return not branch.num_open
        if branch.is_answered:
            return True
        outputs: dict[str, Tensor] = {}
        for name in self._wanted:
            if (tensor := branch.tensors.get(name)) is not None:
                outputs[name] = tensor
                continue
            if not branch.is_moving():
                self._fail(
                    ServableError(
                        "invalid_argument",
                        "unexpected deadlock, at least one output is not set while no more ensemble steps can be made",
                    )
                )
            return False
        branch.is_answered = True
        response = InferResponse(self._host.name, self._host.version, outputs)
        # Without a fork this is the one response; without a stream there is no way to give more than one.
        response.final = not (self._has_forked and self._host.config.decoupled)
        if response.final:
            self._finish(response)
        else:
            self._host.deliver(self._call, response)
        return True

    def _fail(self, error: ServableError) -> None:
        host = self._host
        text = f"in ensemble '{host.name}', {error.message}"
        own = ServableError(error.code, text, retry_after_s=error.retry_after_s)
        self._finish(InferResponse(host.name, host.version, error=own))

    def _finish(self, response: InferResponse) -> None:
        call, host = self._call, self._host
        if call.done:
            return
        if response.error is None and not call.was_cancelled:
            now_ns = host.clock()
            elapsed_ns = now_ns - call.started_ns
            timing = ExecutionTiming(compute_infer_ns=max(0, elapsed_ns - self._queue_ns))
            host.statistics.add_execution(call.rows, timing)
            host.statistics.add_success(call.rows, now_ns - call.request.arrived_ns, self._queue_ns, timing)
        host.deliver(call, response)
        opened, self._open = self._open, {}
        for servable, step_call in opened.values():
            servable.cancel(step_call)
        for servable in self._held.values():
            servable.release()
        self._held.clear()
        call.replica = None  # nothing to cancel; so that the call and this go at once
