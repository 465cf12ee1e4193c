"""`ServableConfig`: how a servable looks from outside and how it is to be run, whatever file said so.

Made from a `config.pbtxt`, from a MindSpore Serving `servable_config.py`, or from a Python class; defaults are those of
Triton's model configuration, which has the most of them. Plain frozen data: nothing here reads files or checks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from millpond.serve.servables.tensors import Tensor, TensorSpec


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """What happens to a request that waits.

    Attributes:
        on_timeout: "reject" answers unavailable; "delay" lets it wait behind all others.
        default_timeout_us: 0 is no limit.
        allow_override: Whether a request's own `timeout_us` counts, when it is shorter.
        max_size: Most requests waiting; 0 is no limit of its own (the registry's bound still holds).
    """

    on_timeout: Literal["reject", "delay"] = "reject"
    default_timeout_us: int = 0
    allow_override: bool = False
    max_size: int = 0


@dataclass(frozen=True, slots=True)
class DynamicBatching:
    """Merge requests of several clients into one execution."""

    preferred_sizes: tuple[int, ...] = ()
    max_delay_us: int = 0
    preserve_ordering: bool = False
    priority_levels: int = 0
    default_priority: int = 0
    queue_policy: QueuePolicy = field(default_factory=QueuePolicy)
    level_policies: dict[int, QueuePolicy] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Control:
    """A control tensor that the sequence batcher makes; `values` is (false, true) and empty for "corrid"."""

    name: str
    kind: Literal["start", "ready", "end", "corrid"]
    datatype: str
    values: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class SequenceStateSpec:
    """A tensor kept between the requests of a sequence: output `output` becomes input `input`; starts as `initial`."""

    input: str
    output: str
    datatype: str
    dims: tuple[int, ...]
    initial: Tensor | None = None


@dataclass(frozen=True, slots=True)
class SequenceBatching:
    """Requests of one sequence go to one instance, in order."""

    strategy: Literal["direct", "oldest"] = "direct"
    max_idle_us: int = 1_000_000
    controls: tuple[Control, ...] = ()
    states: tuple[SequenceStateSpec, ...] = ()
    max_delay_us: int = 0
    minimum_slot_utilization: float = 0.0
    max_candidates: int = 0
    preferred_sizes: tuple[int, ...] = ()
    preserve_ordering: bool = False
    iterative: bool = False


@dataclass(frozen=True, slots=True)
class EnsembleStep:
    """One call of another servable; maps are (that servable's tensor name -> the ensemble's tensor name)."""

    model: str
    version: int | None
    inputs: dict[str, str]
    outputs: dict[str, str]


@dataclass(frozen=True, slots=True)
class InstanceGroup:
    """Replicas of one kind."""

    name: str
    count: int = 1
    kind: Literal["auto", "cpu", "gpu", "model"] = "cpu"
    devices: tuple[int, ...] = ()
    resources: dict[str, int] = field(default_factory=dict)
    global_resources: tuple[str, ...] = ()
    priority: int = 0
    passive: bool = False


@dataclass(frozen=True, slots=True)
class VersionPolicy:
    """Which version folders are served: the `latest` newest, the `specific` ones, or all when both are empty."""

    latest: int = 1
    specific: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class BatchTensor:
    """An input made from the whole batch (ragged batching); `kind` as in Triton's `batch_input`, lower case."""

    kind: str
    names: tuple[str, ...]
    datatype: str
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WarmupSample:
    """A request to run before a servable is ready; an input is a whole tensor, without the batch dimension."""

    name: str
    batch_size: int
    count: int
    inputs: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class MethodSpec:
    """A method of a servable with methods: the names of its tensors in order.

    Attributes:
        specs: Of its inputs, for one instance; empty where they take any datatype and shape.
        streams: Whether it has any number of responses.
        output_specs: Of its outputs, like `specs`.
        documentation: What its author wrote about it.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    specs: tuple[TensorSpec, ...] = ()
    streams: bool = False
    output_specs: tuple[TensorSpec, ...] = ()
    documentation: str = ""


@dataclass(frozen=True, slots=True)
class ServableConfig:
    """All that is known of a servable before it is loaded.

    Attributes:
        backend: Which back end runs it; "ensemble" for ensembles.
        platform: What metadata shows ("" shows the back end's name as Triton would).
        max_batch_size: 0 when there is no batch dimension.
        decoupled: Whether a request may have any number of responses.
        parameters: Of the back end, as strings.
        document: The `ModelConfig` as proto3 JSON with every default, for `/config` and for `initialize(args)`; None
            when the configuration did not come from a protobuf (the protocol then makes one).
        methods: Not empty for servables with methods (MindSpore Serving, `class Servable`). A request that names its
            method has exactly that method's inputs and is one instance: its tensors have no batch dimension. Up to
            `max_batch_size` requests make one execution, whatever their methods and shapes; they are checked by name
            only. A request that names none is checked like any other, by `inputs` and `outputs`: those of the first
            method, or empty where every request must name its method.
    """

    name: str
    backend: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    platform: str = ""
    max_batch_size: int = 0
    version_policy: VersionPolicy = field(default_factory=VersionPolicy)
    instance_groups: tuple[InstanceGroup, ...] = ()
    dynamic_batching: DynamicBatching | None = None
    sequence_batching: SequenceBatching | None = None
    ensemble: tuple[EnsembleStep, ...] = ()
    decoupled: bool = False
    response_cache: bool = False
    warmup: tuple[WarmupSample, ...] = ()
    batch_inputs: tuple[BatchTensor, ...] = ()
    default_model_filename: str = ""
    parameters: dict[str, str] = field(default_factory=dict)
    document: dict[str, object] | None = None
    methods: tuple[MethodSpec, ...] = ()
