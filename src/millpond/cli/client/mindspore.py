"""Requests to a servable's method as MindSpore Serving's clients send them: over REST, or over gRPC.

Instances are JSON: an object, or a list of objects, from input names to values. grpcio and protobuf are imported when
gRPC is asked for.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from millpond.base.errors import ConfigError
from millpond.cli.client.web import ServerError, Web

_METHOD = "/mindspore.serving.proto.MSService/Predict"


def read_instances(text: str) -> list[dict[str, Any]]:
    """Returns the instances of a JSON text.

    Raises:
        ConfigError: It is no object and no list of objects.
    """
    try:
        read = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"The instances are not JSON: {error}.", fix='Write {"x1": [1, 2]}.') from None
    instances = read if isinstance(read, list) else [read]
    if not instances or not all(isinstance(instance, dict) for instance in instances):
        raise ConfigError("An instance is an object of input names and values.", fix='Write {"x1": [1, 2]}.')
    return instances


def ask_rest(web: Web, servable: str, method: str, version: int, instances: list[dict[str, Any]]) -> list[Any]:
    """Returns the answer's instances; one that failed is an object with `error_msg`.

    Raises:
        ServerError: The whole request failed.
    """
    of_version = f"/version/{version}" if version else ""
    path = f"/model/{quote(servable, safe='')}{of_version}:{quote(method, safe='')}"
    answer = web.ask("POST", path, {"instances": instances})
    if not isinstance(answer, dict) or "instances" not in answer:
        raise ServerError(str(answer.get("error_msg", answer) if isinstance(answer, dict) else answer))
    return list(answer["instances"])


def ask_grpc(address: str, servable: str, method: str, version: int, instances: list[dict[str, Any]]) -> list[Any]:
    """Returns the answer's instances; one that failed is an object with `error_msg`.

    Raises:
        ServerError: The whole request failed.
    """
    from millpond.cli.client.triton import call, open_channel

    with open_channel(address) as channel:
        from millpond.serve.grpc.mindspore.messages import read_tensor, write_instance
        from millpond.serve.proto import ms_service_pb2 as pb

        spec = pb.ServableSpec(name=servable, method_name=method, version_number=version)
        request = pb.PredictRequest(servable_spec=spec)
        for instance in instances:
            write_instance(request.instances.add(), {name: _value(value) for name, value in instance.items()})
        answer = call(channel, _METHOD, request, pb.PredictReply)
    failures = [each.error_msg.decode("utf-8", "replace") if each.error_code else "" for each in answer.error_msg]
    if len(failures) == 1 and failures[0] and len(answer.instances) <= 1:
        raise ServerError(failures[0])
    failures = failures or [""] * len(answer.instances)
    return [
        {"error_msg": failure}
        if failure
        else {name: _shown(read_tensor(tensor)) for name, tensor in instance.items.items()}
        for instance, failure in zip(answer.instances, failures, strict=True)
    ]


def _value(value: Any) -> Any:
    """A JSON value as REST reads it: whole numbers are int32, others float32."""
    import numpy as np

    from millpond.serve.mindspore.values import Value, make_text

    if isinstance(value, str):
        return make_text(value.encode("utf-8"), "string")
    try:
        array = np.asarray(value)
    except ValueError:
        array = np.asarray(None)
    if array.dtype.kind not in "biuf":
        raise ConfigError("A value is a text, a number, a boolean, or lists of them that are all as long.")
    return Value("tensor", array.astype({"b": np.bool_, "f": np.float32}.get(array.dtype.kind, np.int32)))


def _shown(value: Any) -> Any:
    read = value.array.tolist()
    return _text(read) if value.kind != "tensor" else read


def _text(read: Any) -> Any:
    if isinstance(read, list):
        return [_text(each) for each in read]
    return read.decode("utf-8", "replace") if isinstance(read, bytes) else read
