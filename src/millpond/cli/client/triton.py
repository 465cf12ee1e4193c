"""Requests to a servable in the Open Inference Protocol (Triton, KServe): over HTTP, or over gRPC.

Asks the server for the model's tensors first, so that a value on the command line needs no datatype. grpcio and
protobuf are imported when gRPC is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

import numpy as np

from millpond.base.errors import ConfigError
from millpond.cli.client.tensors import as_json, bytes_tensor, pack, read_inputs, unpack
from millpond.cli.client.web import TIMEOUT_S, ServerError, Web
from millpond.serve.servables.tensors import NUMPY_TYPES, Tensor

if TYPE_CHECKING:
    import grpc

_SERVICE = "/inference.GRPCInferenceService/"
_WITHOUT_JSON = ("FP16", "BF16")


class TritonClient(Protocol):
    """One model of a server."""

    def infer(self, inputs: Sequence[str], parameters: Mapping[str, Any]) -> list[Tensor]:
        """Returns the outputs for inputs given as NAME=VALUE."""

    def stream(self, inputs: Sequence[str], parameters: Mapping[str, Any]) -> Iterator[list[Tensor]]:
        """Yields the outputs of each response."""


class HttpTriton:
    """See `TritonClient`.

    Args:
        web: The server.
        model: Its name there.
        version: "" is the newest.
    """

    def __init__(self, web: Web, model: str, version: str) -> None:
        self._web = web
        self._path = f"/v2/models/{quote(model, safe='')}" + (f"/versions/{quote(version, safe='')}" if version else "")

    def infer(self, inputs: Sequence[str], parameters: Mapping[str, Any]) -> list[Tensor]:
        tensors = self._read(inputs)
        unspeakable = next((tensor for tensor in tensors if tensor.datatype in _WITHOUT_JSON), None)
        if unspeakable is not None:
            raise ConfigError(
                f"{unspeakable.name} is {unspeakable.datatype}, which JSON cannot hold.", fix="Use --grpc."
            )
        body: dict[str, Any] = {"inputs": [_json_tensor(tensor) for tensor in tensors]}
        if parameters:
            body["parameters"] = dict(parameters)
        answer = self._web.ask("POST", f"{self._path}/infer", body)
        return [_read_json_tensor(output) for output in answer["outputs"]]

    def stream(self, inputs: Sequence[str], parameters: Mapping[str, Any]) -> Iterator[list[Tensor]]:
        body: dict[str, Any] = {}
        for tensor in self._read(inputs):
            values = as_json(tensor)
            while isinstance(values, list) and len(values) == 1:
                values = values[0]
            body[tensor.name] = values
        for event in self._web.events(f"{self._path}/generate_stream", {**body, **parameters}):
            yield [
                _generated(name, value)
                for name, value in event.items()
                if name not in ("model_name", "model_version", "id")
            ]

    def _read(self, inputs: Sequence[str]) -> list[Tensor]:
        described = self._web.ask("GET", self._path)["inputs"]
        return read_inputs(inputs, {each["name"]: (each["datatype"], each["shape"]) for each in described})


class GrpcTriton:
    """See `TritonClient`.

    Args:
        address: HOST:PORT.
        model: Its name there.
        version: "" is the newest.

    Raises:
        ConfigError: grpcio is not installed.
    """

    def __init__(self, address: str, model: str, version: str) -> None:
        self._channel = open_channel(address)
        self._model = model
        self._version = version

    def infer(self, inputs: Sequence[str], parameters: Mapping[str, Any]) -> list[Tensor]:
        from millpond.serve.proto import inference_pb2 as pb

        request = self._request(inputs, parameters)
        answer = call(self._channel, f"{_SERVICE}ModelInfer", request, pb.ModelInferResponse)
        return _outputs(answer)

    def stream(self, inputs: Sequence[str], parameters: Mapping[str, Any]) -> Iterator[list[Tensor]]:
        import grpc

        from millpond.serve.proto import inference_pb2 as pb

        request = self._request(inputs, {"triton_enable_empty_final_response": True, **parameters})
        answers = self._channel.stream_stream(
            f"{_SERVICE}ModelStreamInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelStreamInferResponse.FromString,
        )(iter([request]), timeout=TIMEOUT_S)
        try:
            for answer in answers:
                if answer.error_message:
                    raise ServerError(answer.error_message)
                response = answer.infer_response
                if response.outputs:
                    yield _outputs(response)
                if response.parameters["triton_final_response"].bool_param:
                    return
        except grpc.RpcError as error:
            raise _server_error(error) from None
        finally:
            answers.cancel()

    def _request(self, inputs: Sequence[str], parameters: Mapping[str, Any]) -> Any:
        from millpond.serve.proto import inference_pb2 as pb

        asked = pb.ModelMetadataRequest(name=self._model, version=self._version)
        described = call(self._channel, f"{_SERVICE}ModelMetadata", asked, pb.ModelMetadataResponse).inputs
        tensors = read_inputs(inputs, {each.name: (each.datatype, list(each.shape)) for each in described})
        request = pb.ModelInferRequest(model_name=self._model, model_version=self._version)
        for tensor in tensors:
            request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.array.shape)
            request.raw_input_contents.append(pack(tensor))
        for name, value in parameters.items():
            setattr(request.parameters[name], _PARAMETER_FIELDS[type(value)], value)
        return request


def open_channel(address: str) -> grpc.Channel:
    """Returns a channel to HOST:PORT.

    Raises:
        ConfigError: grpcio is not installed.
    """
    try:
        import grpc
    except ImportError:
        raise ConfigError("gRPC needs grpcio and protobuf.", fix="pip install 'millpond[servables]'") from None
    unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    return grpc.insecure_channel(address.removeprefix("grpc://"), options=unlimited)


def call(channel: grpc.Channel, method: str, request: Any, answer_class: Any) -> Any:
    """Calls a method that has one request and one answer.

    Raises:
        ServerError: It failed.
    """
    import grpc

    ask = channel.unary_unary(
        method,
        request_serializer=type(request).SerializeToString,
        response_deserializer=answer_class.FromString,
    )
    try:
        return ask(request, timeout=TIMEOUT_S)
    except grpc.RpcError as error:
        raise _server_error(error) from None


_PARAMETER_FIELDS = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}


def _server_error(error: Any) -> ServerError:
    return ServerError(f"The server answered {error.code().name}: {error.details()}")


def _outputs(answer: Any) -> list[Tensor]:
    return [
        unpack(output.name, output.datatype, list(output.shape), raw)
        for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=True)
    ]


def _json_tensor(tensor: Tensor) -> dict[str, Any]:
    shape = list(tensor.array.shape)
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": shape, "data": as_json(tensor)}


def _read_json_tensor(output: Mapping[str, Any]) -> Tensor:
    name, datatype, shape = output["name"], output["datatype"], output["shape"]
    if datatype == "BYTES":
        values = np.asarray(output["data"], dtype=str).reshape(-1).tolist()
        return bytes_tensor(name, [value.encode("utf-8") for value in values], shape)
    return Tensor(name, datatype, np.asarray(output["data"], dtype=NUMPY_TYPES[datatype]).reshape(tuple(shape)))


def _generated(name: str, value: Any) -> Tensor:
    """An output of `generate_stream`, which tells values without their datatype."""
    array = np.atleast_1d(np.asarray(value))
    if array.dtype.kind == "U":
        return bytes_tensor(name, [each.encode("utf-8") for each in array.reshape(-1).tolist()], array.shape)
    return Tensor(name, {"b": "BOOL", "i": "INT64", "u": "UINT64"}.get(array.dtype.kind, "FP64"), array)
