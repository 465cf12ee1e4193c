"""What a `servable_config.py` calls: declare models, add stages, register methods."""

from millpond.compat.mindspore_serving.server.register import model
from millpond.compat.mindspore_serving.server.register.context import (
    AclOptions,
    AscendDeviceInfo,
    Context,
    CPUDeviceInfo,
    GPUDeviceInfo,
    GpuOptions,
)
from millpond.compat.mindspore_serving.server.register.method import add_stage, register_method
from millpond.compat.mindspore_serving.server.register.model import Model, declare_model, declare_servable
from millpond.compat.mindspore_serving.server.register.older import (
    call_postprocess,
    call_postprocess_pipeline,
    call_preprocess,
    call_preprocess_pipeline,
    call_servable,
)

__all__ = [
    "AclOptions",
    "AscendDeviceInfo",
    "CPUDeviceInfo",
    "Context",
    "GPUDeviceInfo",
    "GpuOptions",
    "Model",
    "add_stage",
    "call_postprocess",
    "call_postprocess_pipeline",
    "call_preprocess",
    "call_preprocess_pipeline",
    "call_servable",
    "declare_model",
    "declare_servable",
    "model",
    "register_method",
]
