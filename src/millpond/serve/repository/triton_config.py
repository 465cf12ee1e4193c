"""Triton's model configuration as a `ServableConfig`, and a `ServableConfig` as Triton's document.

Called by the repository (`config.pbtxt`, the JSON of a load request) and by the KServe protocol (what `/config`
answers). Files that a configuration names (labels, warm-up data, initial states) come through a reader that the caller
gives; nothing here opens a file or knows where the repository is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from google.protobuf.message import Message

from millpond.serve.proto import model_config_pb2 as pb
from millpond.serve.repository import triton_rules
from millpond.serve.repository.triton_document import print_document, read_document, read_text
from millpond.serve.repository.triton_tensors import datatype_name, datatype_number, initial_state, warmup_samples
from millpond.serve.servables.config import (
    BatchTensor,
    Control,
    DynamicBatching,
    EnsembleStep,
    InstanceGroup,
    QueuePolicy,
    SequenceBatching,
    SequenceStateSpec,
    ServableConfig,
    VersionPolicy,
)
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.tensors import TensorSpec

ReadFile = Callable[[str], bytes]
"""Returns a file of the model's folder by relative path; raises `ServableError` when there is none or it may not."""


def parse_config_text(text: str, where: str, *, name: str = "", read_file: ReadFile | None = None) -> ServableConfig:
    """Reads a `config.pbtxt`.

    Args:
        text: Its content.
        where: How messages name the file.
        name: The model's, for a file that does not say it.
        read_file: Reads files that the configuration names; without it labels are left out and data files refused.

    Raises:
        ServableError: It is not a model configuration, or makes no sense.
    """
    return _from_message(read_text(text, where), name, read_file)


def config_from_json(
    document: Mapping[str, object], *, name: str = "", read_file: ReadFile | None = None
) -> ServableConfig:
    """Reads a configuration that came as JSON; arguments and errors as in `parse_config_text`."""
    return _from_message(read_document(document), name, read_file)


def to_document(config: ServableConfig) -> dict[str, Any]:
    """Returns the configuration as Triton prints it, with what the back end has filled in since it was read."""
    return print_document(to_message(config))


def to_message(config: ServableConfig) -> pb.ModelConfig:
    """Returns the configuration as Triton's message."""
    message = read_document(config.document) if config.document is not None else pb.ModelConfig()
    is_new = config.document is None
    message.name = config.name
    message.max_batch_size = config.max_batch_size
    if config.backend == "ensemble":
        message.platform = "ensemble"
    else:
        message.backend = config.backend
        message.platform = config.platform
    if config.default_model_filename:
        message.default_model_filename = config.default_model_filename
    if _specs(message.input) != _plain(config.inputs):
        _put_specs(message.input, config.inputs)
    if _specs(message.output) != _plain(config.outputs):
        _put_specs(message.output, config.outputs)
    if config.decoupled != message.model_transaction_policy.decoupled:
        message.model_transaction_policy.decoupled = config.decoupled
    if config.dynamic_batching is not None and message.WhichOneof("scheduling_choice") is None:
        message.dynamic_batching.preferred_batch_size.extend(config.dynamic_batching.preferred_sizes)
        message.dynamic_batching.max_queue_delay_microseconds = config.dynamic_batching.max_delay_us
    if is_new:
        for key, value in config.parameters.items():
            message.parameters[key].string_value = value
        for group in config.instance_groups:
            message.instance_group.add(
                name=group.name, count=group.count, kind=pb.ModelInstanceGroup.Kind.Value(f"KIND_{group.kind.upper()}")
            )
        triton_rules.complete(message)
    return message


def _plain(specs: tuple[TensorSpec, ...]) -> list[tuple[str, str, tuple[int, ...], bool]]:
    return [(spec.name, spec.datatype, spec.dims, spec.optional) for spec in specs]


def _specs(tensors: Any) -> list[tuple[str, str, tuple[int, ...], bool]]:
    return [
        (tensor.name, datatype_name(tensor.data_type), tuple(tensor.dims), getattr(tensor, "optional", False))
        for tensor in tensors
    ]


def _put_specs(tensors: Any, specs: tuple[TensorSpec, ...]) -> None:
    known: dict[str, Message] = {tensor.name: type(tensor).FromString(tensor.SerializeToString()) for tensor in tensors}
    del tensors[:]
    for spec in specs:
        tensor = tensors.add()
        if spec.name in known:
            tensor.CopyFrom(known[spec.name])
        tensor.name, tensor.data_type, tensor.dims[:] = spec.name, datatype_number(spec.datatype), spec.dims
        if spec.optional:
            tensor.optional = True


def _from_message(message: pb.ModelConfig, name: str, read_file: ReadFile | None) -> ServableConfig:
    message.name = message.name or name
    triton_rules.complete(message)
    triton_rules.check(message)
    is_ensemble = message.platform == "ensemble"
    return ServableConfig(
        name=message.name,
        backend="ensemble" if is_ensemble else message.backend,
        platform=message.platform,
        inputs=tuple(_input_spec(tensor) for tensor in message.input),
        outputs=tuple(_output_spec(tensor, read_file) for tensor in message.output),
        max_batch_size=message.max_batch_size,
        version_policy=_version_policy(message.version_policy),
        instance_groups=tuple(_group(group) for group in message.instance_group),
        dynamic_batching=_dynamic(message.dynamic_batching) if message.HasField("dynamic_batching") else None,
        sequence_batching=(
            _sequence(message.sequence_batching, read_file) if message.HasField("sequence_batching") else None
        ),
        ensemble=tuple(_step(step) for step in message.ensemble_scheduling.step) if is_ensemble else (),
        decoupled=message.model_transaction_policy.decoupled,
        response_cache=message.response_cache.enable,
        warmup=warmup_samples(message.model_warmup, read_file),
        batch_inputs=tuple(_batch_input(tensor) for tensor in message.batch_input),
        default_model_filename=message.default_model_filename,
        parameters={key: message.parameters[key].string_value for key in sorted(message.parameters)},
        document=print_document(message),
    )


def _input_spec(tensor: pb.ModelInput) -> TensorSpec:
    return TensorSpec(
        tensor.name,
        datatype_name(tensor.data_type),
        tuple(tensor.dims),
        optional=tensor.optional,
        reshape=tuple(tensor.reshape.shape) if tensor.HasField("reshape") else None,
        ragged=tensor.allow_ragged_batch,
    )


def _output_spec(tensor: pb.ModelOutput, read_file: ReadFile | None) -> TensorSpec:
    labels: tuple[str, ...] = ()
    if tensor.label_filename and read_file is not None:
        try:
            labels = tuple(read_file(tensor.label_filename).decode().splitlines())
        except UnicodeDecodeError:
            raise ServableError(
                "invalid_argument", f"label file '{tensor.label_filename}' of output '{tensor.name}' is not UTF-8"
            ) from None
    return TensorSpec(
        tensor.name,
        datatype_name(tensor.data_type),
        tuple(tensor.dims),
        reshape=tuple(tensor.reshape.shape) if tensor.HasField("reshape") else None,
        labels=labels,
    )


def _version_policy(policy: pb.ModelVersionPolicy) -> VersionPolicy:
    choice = policy.WhichOneof("policy_choice")
    if choice == "specific":
        return VersionPolicy(latest=0, specific=tuple(policy.specific.versions))
    return VersionPolicy(latest=0 if choice == "all" else max(1, policy.latest.num_versions))


def _group(group: pb.ModelInstanceGroup) -> InstanceGroup:
    kinds: dict[int, Literal["auto", "cpu", "gpu", "model"]] = {0: "auto", 1: "gpu", 2: "cpu", 3: "model"}
    return InstanceGroup(
        group.name,
        count=group.count,
        kind=kinds[group.kind],
        devices=tuple(group.gpus),
        resources={resource.name: resource.count for resource in group.rate_limiter.resources},
        global_resources=tuple(sorted(r.name for r in group.rate_limiter.resources if getattr(r, "global"))),
        priority=group.rate_limiter.priority,
        passive=group.passive,
    )


def _dynamic(batching: pb.ModelDynamicBatching) -> DynamicBatching:
    return DynamicBatching(
        preferred_sizes=tuple(batching.preferred_batch_size),
        max_delay_us=batching.max_queue_delay_microseconds,
        preserve_ordering=batching.preserve_ordering,
        priority_levels=batching.priority_levels,
        default_priority=batching.default_priority_level,
        queue_policy=_queue_policy(batching.default_queue_policy),
        level_policies={
            level: _queue_policy(batching.priority_queue_policy[level])
            for level in sorted(batching.priority_queue_policy)
        },
    )


def _queue_policy(policy: pb.ModelQueuePolicy) -> QueuePolicy:
    return QueuePolicy(
        on_timeout="delay" if policy.timeout_action == pb.ModelQueuePolicy.DELAY else "reject",
        default_timeout_us=policy.default_timeout_microseconds,
        allow_override=policy.allow_timeout_override,
        max_size=policy.max_queue_size,
    )


def _sequence(batching: pb.ModelSequenceBatching, read_file: ReadFile | None) -> SequenceBatching:
    direct, oldest = batching.direct, batching.oldest
    is_oldest = batching.HasField("oldest")
    return SequenceBatching(
        strategy="oldest" if is_oldest else "direct",
        max_idle_us=batching.max_sequence_idle_microseconds,
        controls=tuple(_control(item.name, control) for item in batching.control_input for control in item.control),
        states=tuple(
            SequenceStateSpec(
                state.input_name,
                state.output_name,
                datatype_name(state.data_type),
                tuple(state.dims),
                initial_state(state, read_file),
            )
            for state in batching.state
        ),
        max_delay_us=oldest.max_queue_delay_microseconds if is_oldest else direct.max_queue_delay_microseconds,
        minimum_slot_utilization=direct.minimum_slot_utilization,
        max_candidates=oldest.max_candidate_sequences,
        preferred_sizes=tuple(oldest.preferred_batch_size),
        preserve_ordering=oldest.preserve_ordering,
        iterative=batching.iterative_sequence,
    )


def _control(name: str, control: pb.ModelSequenceBatching.Control) -> Control:
    kinds: dict[int, Literal["start", "ready", "end", "corrid"]] = {0: "start", 1: "ready", 2: "end", 3: "corrid"}
    kind = kinds[control.kind]
    if control.int32_false_true:
        return Control(name, kind, "INT32", tuple(map(float, control.int32_false_true)))
    if control.fp32_false_true:
        return Control(name, kind, "FP32", tuple(control.fp32_false_true))
    if control.bool_false_true:
        return Control(name, kind, "BOOL", tuple(map(float, control.bool_false_true)))
    return Control(name, kind, datatype_name(control.data_type))


def _step(step: pb.ModelEnsembling.Step) -> EnsembleStep:
    return EnsembleStep(
        step.model_name,
        None if step.model_version < 1 else step.model_version,
        inputs=dict(step.input_map),
        outputs=dict(step.output_map),
    )


def _batch_input(tensor: pb.BatchInput) -> BatchTensor:
    return BatchTensor(
        pb.BatchInput.Kind.Name(tensor.kind).lower(),
        tuple(tensor.target_name),
        datatype_name(tensor.data_type),
        tuple(tensor.source_input),
    )
