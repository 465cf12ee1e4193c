"""The API that a `model.py` written for Triton's python back end imports as `triton_python_backend_utils`.

`install` gives it that name; the python runner calls it in the worker process before it imports the model, so files
run unchanged. Names, signatures and texts of errors are Triton's. What there is only with a GPU is accepted and stays
in main memory; histograms are refused.
"""

import sys

from millpond.compat.triton_python_backend_utils.connection import CONNECTION
from millpond.compat.triton_python_backend_utils.errors import TritonError, TritonModelException
from millpond.compat.triton_python_backend_utils.logger import Logger, LogLevel
from millpond.compat.triton_python_backend_utils.metrics import Metric, MetricFamily, MetricKind
from millpond.compat.triton_python_backend_utils.model_config import (
    ModelConfig,
    get_input_config_by_name,
    get_output_config_by_name,
    using_decoupled_model_transaction_policy,
)
from millpond.compat.triton_python_backend_utils.repository import (
    get_model_dir,
    is_model_ready,
    load_model,
    unload_model,
)
from millpond.compat.triton_python_backend_utils.requests import (
    TRITONSERVER_MEMORY_CPU,
    TRITONSERVER_MEMORY_CPU_PINNED,
    TRITONSERVER_MEMORY_GPU,
    TRITONSERVER_REQUEST_FLAG_SEQUENCE_END,
    TRITONSERVER_REQUEST_FLAG_SEQUENCE_START,
    TRITONSERVER_REQUEST_RELEASE_ALL,
    TRITONSERVER_REQUEST_RELEASE_RESCHEDULE,
    InferenceRequest,
    InferenceTrace,
    PreferredMemory,
)
from millpond.compat.triton_python_backend_utils.responses import (
    TRITONSERVER_RESPONSE_COMPLETE_FINAL,
    InferenceResponse,
    InferenceResponseSender,
    ResponseIterator,
)
from millpond.compat.triton_python_backend_utils.tensors import (
    TRITON_STRING_TO_NUMPY,
    Tensor,
    deserialize_bytes_tensor,
    numpy_to_triton_type,
    serialize_byte_tensor,
    triton_string_to_numpy,
    triton_to_numpy_type,
)

__all__ = [
    "CONNECTION",
    "TRITONSERVER_MEMORY_CPU",
    "TRITONSERVER_MEMORY_CPU_PINNED",
    "TRITONSERVER_MEMORY_GPU",
    "TRITONSERVER_REQUEST_FLAG_SEQUENCE_END",
    "TRITONSERVER_REQUEST_FLAG_SEQUENCE_START",
    "TRITONSERVER_REQUEST_RELEASE_ALL",
    "TRITONSERVER_REQUEST_RELEASE_RESCHEDULE",
    "TRITONSERVER_RESPONSE_COMPLETE_FINAL",
    "TRITON_STRING_TO_NUMPY",
    "InferenceRequest",
    "InferenceResponse",
    "InferenceResponseSender",
    "InferenceTrace",
    "LogLevel",
    "Logger",
    "Metric",
    "MetricFamily",
    "MetricKind",
    "ModelConfig",
    "PreferredMemory",
    "ResponseIterator",
    "Tensor",
    "TritonError",
    "TritonModelException",
    "deserialize_bytes_tensor",
    "get_input_config_by_name",
    "get_input_tensor_by_name",
    "get_model_dir",
    "get_output_config_by_name",
    "get_output_tensor_by_name",
    "install",
    "is_model_ready",
    "load_model",
    "numpy_to_triton_type",
    "serialize_byte_tensor",
    "triton_string_to_numpy",
    "triton_to_numpy_type",
    "unload_model",
    "using_decoupled_model_transaction_policy",
]


def get_input_tensor_by_name(inference_request: InferenceRequest, name: str) -> Tensor | None:
    """Returns an input of a request, None when it has no such input."""
    for tensor in inference_request.inputs():
        if tensor.unwrapped.name == name:
            return tensor
    return None


def get_output_tensor_by_name(inference_response: InferenceResponse, name: str) -> Tensor | None:
    """Returns an output of a response, None when it has no such output."""
    return next((tensor for tensor in inference_response.output_tensors() if tensor.name() == name), None)


def install() -> None:
    """Makes this package importable under the name that models use, in this process."""
    sys.modules["triton_python_backend_utils"] = sys.modules[__name__]
    sys.modules["c_python_backend_utils"] = sys.modules[__name__]
