"""Declaring models: `declare_model`, `declare_servable` (its older name) and `Model`, what they return.

Called by a `servable_config.py`. Only records; `Model.call` runs through whatever the worker put into the recording.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from millpond.compat.mindspore_serving.server.checks import check_bool, check_int, check_ints, check_str, check_strs
from millpond.compat.mindspore_serving.server.register.context import AclOptions, Context, GpuOptions
from millpond.compat.mindspore_serving.server.register.recording import DeclaredModel, Recording, current

_FORMATS = ("om", "mindir", "mindir_opt", "mindir_lite", "onnx", "pytorch")


class Model:
    """A declared model: a stage of a method, or called inside a stage's function.

    Args:
        model_key: The model's files joined with ";".
    """

    def __init__(self, model_key: str, *, recording: Recording | None = None) -> None:
        self.model_key = model_key
        self._recording = recording or current()

    def call(self, *args: Any, subgraph: int = 0) -> Any:
        """Runs the model.

        Args:
            args: The inputs of one instance, or one list of instances, each a list of inputs.
            subgraph: Which of the model's files.

        Returns:
            The output or the tuple of outputs of one instance, or a tuple with each instance's outputs.

        Raises:
            RuntimeError: The inputs do not fit, or the model failed.
        """
        check_int("subgraph", subgraph, 0)
        shown = f"{self.model_key} ,subgraph={subgraph}" if subgraph else self.model_key
        prefix = f"Model({shown}).call() failed: "
        forms = "the inputs can be call(x1, x2) for single instance or call([[x1, x2], [x1, x2]]) for multi instances."
        if not args:
            raise RuntimeError(f"{prefix}no inputs provided, {forms}")
        is_batch = len(args) == 1 and isinstance(args[0], (tuple, list))
        given: Sequence[Any] = args[0] if is_batch else (args,)
        if not all(isinstance(instance, (tuple, list)) for instance in given):
            raise RuntimeError(f"{prefix}inputs format invalid, {forms}")
        if self.model_key not in self._recording.models:
            raise RuntimeError(f"{prefix}the model is not declared")
        if not given:
            raise RuntimeError(f"{prefix}Input instances count is 0")
        if self._recording.run_model is None:
            raise RuntimeError(f"{prefix}the model is not loaded yet; call it inside a stage function")
        try:
            outputs = self._recording.run_model(self.model_key, [tuple(instance) for instance in given], subgraph)
        except RuntimeError as error:
            raise RuntimeError(f"{prefix}{error}") from None
        if is_batch:
            return outputs
        return outputs[0][0] if len(outputs[0]) == 1 else outputs[0]


def declare_model(
    model_file: str | Sequence[str],
    model_format: str,
    with_batch_dim: bool = True,
    options: AclOptions | GpuOptions | None = None,
    without_batch_dim_inputs: int | Sequence[int] | None = None,
    *,
    context: Context | None = None,
    config_file: str | None = None,
) -> Model:
    """Declares a model of the servable.

    Args:
        model_file: The file or files (subgraphs) in the version's folder. In place of a `.mindir` the file of the same
            name that ends in `.onnx`, `.pt2` or `.pt` is loaded.
        model_format: "MindIR", "MindIR_Lite", "MindIR_Opt", "OM", "ONNX" or "PyTorch", in any case.
        with_batch_dim: Whether the first dimension of inputs and outputs is the batch.
        options: The older form of `context`.
        without_batch_dim_inputs: Inputs that have no batch dimension nevertheless.
        context: Hints for devices; only its number of threads counts here.
        config_file: Not used here.

    Raises:
        RuntimeError: An argument is wrong, or the file is declared already.
    """
    check_bool("with_batch_dim", with_batch_dim)
    files = check_strs("model_file", model_file)
    check_str("model_format", model_format)
    if model_format.lower() not in _FORMATS:
        raise RuntimeError("model format can only be OM, MindIR or MindIR_Opt, case ignored")
    if context is not None and not isinstance(context, Context):
        raise RuntimeError(f"Parameter 'context' should be Context, but gotten {type(context)}")
    if options is not None and not isinstance(options, (AclOptions, GpuOptions)):
        raise RuntimeError(
            f"Parameter 'options' should be None, GpuOptions or AclOptions, but gotten {type(options)}"
        )
    if config_file is not None:
        check_str("config_file", config_file)
    without: tuple[int, ...] = ()
    if without_batch_dim_inputs is not None:
        without = check_ints("without_batch_dim_inputs", without_batch_dim_inputs, 0)
    recording = current()
    key = ";".join(files)
    num_threads = 0 if context is None else context.thread_num
    recording.declare(DeclaredModel(key, files, model_format.lower(), with_batch_dim, without, num_threads))
    return Model(key, recording=recording)


def declare_servable(
    servable_file: str | Sequence[str],
    model_format: str,
    with_batch_dim: bool = True,
    options: AclOptions | GpuOptions | None = None,
    without_batch_dim_inputs: int | Sequence[int] | None = None,
) -> Model:
    """The older name of `declare_model`."""
    warn_deprecated("declare_servable", "declare_model")
    return declare_model(servable_file, model_format, with_batch_dim, options, without_batch_dim_inputs)


def warn_deprecated(old: str, new: str) -> None:
    """Says that a function has a newer name."""
    warnings.warn(f"'{old}' is deprecated; use 'register.{new}'.", DeprecationWarning, stacklevel=3)
