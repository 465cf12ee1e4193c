"""What Triton adds to a model configuration that leaves things open, and what it does not accept.

Works on the message alone, without files; called by `triton_config`. The texts of the errors are read by people and by
clients' tests, so they follow Triton's where those are known.
"""

from __future__ import annotations

from collections.abc import Iterable

from millpond.serve.proto.model_config_pb2 import (
    ModelConfig,
    ModelDynamicBatching,
    ModelInput,
    ModelInstanceGroup,
    ModelOutput,
    ModelSequenceBatching,
)
from millpond.serve.servables.errors import ServableError

_BACKENDS = {
    "onnxruntime_onnx": "onnxruntime",
    "pytorch_libtorch": "pytorch",
    "tensorrt_plan": "tensorrt",
    "tensorflow_graphdef": "tensorflow",
    "tensorflow_savedmodel": "tensorflow",
}
_PLATFORMS = {"onnxruntime": "onnxruntime_onnx", "pytorch": "pytorch_libtorch"}
_FILES = {"python": "model.py", "onnxruntime": "model.onnx", "pytorch": "model.pt"}
_DEFAULT_IDLE_US = 1_000_000
_MAX_REPLICAS = 1024


def complete(config: ModelConfig) -> None:
    """Fills in the defaults, in place."""
    if not config.backend:
        config.backend = _BACKENDS.get(config.platform, "")
    if not config.platform:
        config.platform = _PLATFORMS.get(config.backend, "")
    if not config.version_policy.WhichOneof("policy_choice"):
        config.version_policy.latest.num_versions = 1
    if not config.optimization.HasField("input_pinned_memory"):
        config.optimization.input_pinned_memory.enable = True
    if not config.optimization.HasField("output_pinned_memory"):
        config.optimization.output_pinned_memory.enable = True
    if not config.default_model_filename:
        config.default_model_filename = _FILES.get(config.backend, "")
    if config.HasField("sequence_batching") and not config.sequence_batching.max_sequence_idle_microseconds:
        config.sequence_batching.max_sequence_idle_microseconds = _DEFAULT_IDLE_US
    if config.max_batch_size > 0 and _lacks_preferred(config):
        config.dynamic_batching.preferred_batch_size.append(config.max_batch_size)
    if config.platform != "ensemble":
        _complete_groups(config)
    for step in config.ensemble_scheduling.step if config.HasField("ensemble_scheduling") else ():
        step.model_version = step.model_version or -1


def _lacks_preferred(config: ModelConfig) -> bool:
    return config.HasField("dynamic_batching") and not config.dynamic_batching.preferred_batch_size


def _complete_groups(config: ModelConfig) -> None:
    if not config.instance_group:
        config.instance_group.add()
    for index, group in enumerate(config.instance_group):
        group.name = group.name or f"{config.name}_{index}"
        group.count = group.count or 1
        if group.kind == ModelInstanceGroup.KIND_AUTO:
            group.kind = ModelInstanceGroup.KIND_CPU


def check(config: ModelConfig) -> None:
    """Raises when a configuration makes no sense.

    Raises:
        ServableError: Code "invalid_argument".
    """
    name = config.name
    if config.max_batch_size < 0:
        raise _invalid(f"'max_batch_size' must be non-negative value for {name}")
    if config.platform == "ensemble" or config.HasField("ensemble_scheduling"):
        _check_ensemble(config)
    for kind, tensors in (("input", config.input), ("output", config.output)):
        _check_tensors(name, kind, tensors)
    if config.HasField("dynamic_batching"):
        _check_dynamic(config, config.dynamic_batching)
    if config.HasField("sequence_batching"):
        _check_sequence(config, config.sequence_batching)
    for group in config.instance_group:
        if not 0 < group.count <= _MAX_REPLICAS:
            raise _invalid(f"instance group {group.name} of model {name} must have a count of 1 to {_MAX_REPLICAS}")
        if group.kind == ModelInstanceGroup.KIND_GPU:
            raise _invalid(f"instance group {group.name} of model {name} has kind KIND_GPU but no GPUs are available")


def _check_tensors(model: str, kind: str, tensors: Iterable[ModelInput | ModelOutput]) -> None:
    seen = set()
    for tensor in tensors:
        if not tensor.name:
            raise _invalid(f"model {kind} must specify 'name' for {model}")
        if tensor.name in seen:
            raise _invalid(f"model {kind} '{tensor.name}' is specified more than once for {model}")
        seen.add(tensor.name)
        if not tensor.data_type:
            raise _invalid(f"model {kind} '{tensor.name}' must specify 'data_type' for {model}")
        if not tensor.dims and not tensor.HasField("reshape"):
            raise _invalid(f"model {kind} '{tensor.name}' must specify 'dims' for {model}")
        if any(dim < 1 and dim != -1 for dim in tensor.dims):
            raise _invalid(
                f"model {kind} '{tensor.name}' dimension must be integer >= 1, or -1 to indicate a variable-size "
                f"dimension for {model}"
            )
        if tensor.HasField("reshape"):
            _check_reshape(model, kind, tensor)


def _check_reshape(model: str, kind: str, tensor: ModelInput | ModelOutput) -> None:
    dims, shape = list(tensor.dims), list(tensor.reshape.shape)
    same = dims.count(-1) == shape.count(-1) and (dims.count(-1) > 1 or _product(dims) == _product(shape))
    if any(dim < 1 and dim != -1 for dim in shape) or not same:
        raise _invalid(f"model {kind} '{tensor.name}' has different size for dims and reshape for {model}")


def _product(dims: Iterable[int]) -> int:
    product = 1
    for dim in dims:
        product *= abs(dim)
    return product


def _check_dynamic(config: ModelConfig, batching: ModelDynamicBatching) -> None:
    name = config.name
    for size in batching.preferred_batch_size:
        if size <= 0:
            raise _invalid(f"dynamic batching preferred size must be positive for {name}")
        if size > config.max_batch_size:
            raise _invalid(f"dynamic batching preferred size must be <= max batch size for {name}")
    levels = batching.priority_levels
    if levels and not 1 <= batching.default_priority_level <= levels:
        raise _invalid(f"default priority level must be in range [1, {levels}] for {name}")
    for level in batching.priority_queue_policy:
        if not 1 <= level <= levels:
            raise _invalid(f"priority queue policy must have priority level in range [1, {levels}] for {name}")


def _check_sequence(config: ModelConfig, batching: ModelSequenceBatching) -> None:
    name = config.name
    if batching.HasField("oldest"):
        for size in batching.oldest.preferred_batch_size:
            if not 0 < size <= max(1, config.max_batch_size):
                raise _invalid(
                    f"sequence batching preferred batch size must be positive and <= max batch size for {name}"
                )
    for control_input in batching.control_input:
        if not control_input.name:
            raise _invalid(f"sequence batching control tensor must have a name for {name}")
        for control in control_input.control:
            values = (control.int32_false_true, control.fp32_false_true, control.bool_false_true)
            if control.kind == ModelSequenceBatching.Control.CONTROL_SEQUENCE_CORRID:
                if any(values) or not control.data_type:
                    raise _invalid(
                        f"sequence batching control tensor {control_input.name} must specify 'data_type' and no "
                        f"'*_false_true' for {name}"
                    )
            elif sorted(len(value) for value in values) != [0, 0, 2]:
                raise _invalid(
                    f"sequence batching control tensor {control_input.name} must specify exactly one of "
                    f"'int32_false_true', 'fp32_false_true' and 'bool_false_true', with 2 entries, for {name}"
                )


def _check_ensemble(config: ModelConfig) -> None:
    name = config.name
    if config.platform != "ensemble":
        raise _invalid(f"ensemble scheduling cannot be set for model '{name}' whose platform is not 'ensemble'")
    if not config.ensemble_scheduling.step:
        raise _invalid(f"must specify 'step' for ensemble model '{name}'")
    if config.instance_group:
        raise _invalid(f"instance group should not be specified for ensemble '{name}'")
    for index, step in enumerate(config.ensemble_scheduling.step):
        if not step.model_name:
            raise _invalid(f"must specify 'model_name' in step {index} of ensemble '{name}'")
        if not step.input_map or not step.output_map:
            raise _invalid(f"must specify 'input_map' and 'output_map' in step {index} of ensemble '{name}'")


def _invalid(text: str) -> ServableError:
    return ServableError("invalid_argument", text)
