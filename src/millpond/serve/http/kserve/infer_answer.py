"""An `InferResponse` as the body of an infer response: JSON, with raw tensors behind it where they are wanted so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from millpond.serve.http.kserve.exchange import JSON
from millpond.serve.http.kserve.infer_request import OutputWish, OutputWishes
from millpond.serve.http.kserve.json_body import write_json
from millpond.serve.http.kserve.json_tensor import list_from_tensor
from millpond.serve.kserve.classification import classify
from millpond.serve.kserve.raw import Buffer, encode_raw
from millpond.serve.kserve.server import KServe
from millpond.serve.servables.config import ServableConfig
from millpond.serve.servables.messages import InferResponse, Parameter
from millpond.serve.servables.tensors import Tensor

_BINARY = b"application/octet-stream"
_QUIRK: dict[str, Parameter] = {"sequence_id": 0, "sequence_start": False, "sequence_end": False}


@dataclass(slots=True)
class Answer:
    """What goes into the response."""

    parts: list[Buffer]
    content_type: bytes
    headers: list[tuple[bytes, bytes]]


def write_answer(
    server: KServe, config: ServableConfig, request_id: str, wishes: OutputWishes, response: InferResponse
) -> Answer:
    """Returns a response as it goes over the wire.

    Raises:
        ServableError: An output cannot be sent as it is wanted.
    """
    document: dict[str, Any] = {"id": request_id} if request_id else {}
    document["model_name"] = response.model
    document["model_version"] = str(response.version)
    parameters = response_parameters(server, config, response)
    if parameters:
        document["parameters"] = parameters
    raw: list[Buffer] = []
    outputs = document["outputs"] = []
    has_no_numbers = False
    specs = {spec.name: spec for spec in config.outputs}
    for tensor in response.outputs.values():
        wish = wishes.of(tensor.name)
        if wish.num_classes:
            shown = classify(tensor, wish.num_classes, specs.get(tensor.name), has_batch=config.max_batch_size > 0)
        else:
            shown = tensor
        has_no_numbers |= _put(server, outputs, raw, shown, wish)
    text = write_json(document, has_no_numbers=has_no_numbers)
    if not any(map(len, raw)):
        return Answer([text], JSON, [])
    return Answer([text, *raw], _BINARY, [(b"Inference-Header-Content-Length", b"%d" % len(text))])


def response_parameters(server: KServe, config: ServableConfig, response: InferResponse) -> dict[str, Parameter]:
    """Returns the parameters of a response; Triton's ensembles have some that mean nothing."""
    is_empty = all(not tensor.array.size for tensor in response.outputs.values())
    if config.ensemble and not server.settings.is_strict and not is_empty:
        return {**_QUIRK, **response.parameters}
    return response.parameters


def _put(server: KServe, outputs: list[Any], raw: list[Buffer], tensor: Tensor, wish: OutputWish) -> bool:
    """Adds an output; returns whether it has floats that JSON has no numbers for."""
    item: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.array.shape)}
    outputs.append(item)
    if wish.region is not None:
        data = encode_raw(tensor.datatype, tensor.array)
        region = wish.region
        # Nothing says where it went: Triton does not, and its C++ client takes parameters for those of raw data.
        server.regions.write(region.name, region.offset, region.byte_size, data, tensor.name)
    elif wish.is_binary:
        data = encode_raw(tensor.datatype, tensor.array)
        raw.append(data)
        item["parameters"] = {"binary_data_size": len(data)}
    else:
        item["data"] = list_from_tensor(tensor)
        return tensor.datatype in ("FP32", "FP64") and not bool(np.isfinite(tensor.array).all())
    return False
