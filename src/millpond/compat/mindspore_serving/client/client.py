"""`Client`: sends instances to a MindSpore Serving server, ours or theirs, over gRPC.

Results and errors have the original's forms: a list with a dict an instance, `{"error": text}` for an instance that
failed, `{"error": text}` alone when all failed or the server could not be reached.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from millpond.compat.mindspore_serving.server.checks import check_int, check_str
from millpond.serve.grpc.mindspore.messages import read_tensor, write_instance
from millpond.serve.mindspore.values import Value, make_text
from millpond.serve.proto import ms_service_pb2 as pb

_SERVICE = "/mindspore.serving.proto.MSService"
_MAX_MESSAGE_BYTES = 512 << 20
_NUMBERS = "biuf"

Instance = Mapping[str, Any]
Result = list[dict[str, Any]] | dict[str, str]


class SSLConfig:
    """How the client proves itself and whom it believes; PEM files.

    Args:
        certificate: The client's certificates, with `private_key`.
        private_key: Its key.
        custom_ca: Authorities of servers' certificates; None takes the system's.

    Raises:
        RuntimeError: An argument is wrong.
    """

    def __init__(
        self, certificate: str | None = None, private_key: str | None = None, custom_ca: str | None = None
    ) -> None:
        given = {"certificate": certificate, "private_key": private_key, "custom_ca": custom_ca}
        for name, value in given.items():
            if value is not None:
                check_str(name, value)
        self.certificate = certificate
        self.private_key = private_key
        self.custom_ca = custom_ca


class Client:
    """A client of one method.

    Args:
        address: "host:port" or "unix:path".
        servable_name: The servable.
        method_name: Its method.
        version_number: 0 is the newest that runs.
        ssl_config: None speaks in the clear.

    Raises:
        RuntimeError: An argument is wrong.
    """

    def __init__(
        self,
        address: str,
        servable_name: str,
        method_name: str,
        version_number: int = 0,
        ssl_config: SSLConfig | None = None,
    ) -> None:
        self.address = check_str("address", address)
        self.servable_name = check_str("servable_name", servable_name)
        self.method_name = check_str("method_name", method_name)
        self.version_number = check_int("version_number", version_number, 0)
        if ssl_config is not None and not isinstance(ssl_config, SSLConfig):
            raise RuntimeError("The type of ssl_config should be type of SSLConfig")
        self.channel = _open_channel(address, ssl_config)
        write, read = pb.PredictRequest.SerializeToString, pb.PredictReply.FromString
        self._predict = self.channel.unary_unary(f"{_SERVICE}/Predict", write, read)
        self._predict_stream = self.channel.unary_stream(f"{_SERVICE}/PredictStream", write, read)

    def infer(self, instances: Instance | Sequence[Instance]) -> Result:
        """Sends one instance or several and waits for the results.

        Args:
            instances: Dicts from input name to value: int, float, bool, str, bytes, numpy number or array.

        Raises:
            RuntimeError: A value cannot be sent.
        """
        try:
            return _read_reply(self._predict(self._request(instances)))
        except grpc.RpcError as error:
            return _grpc_error(error)

    def infer_async(self, instances: Instance | Sequence[Instance]) -> ClientGrpcAsyncResult:
        """Sends and returns at once; `result()` of what is returned waits.

        Raises:
            RuntimeError: A value cannot be sent.
        """
        return ClientGrpcAsyncResult(self._predict.future(self._request(instances)))

    def infer_stream(self, instance: Instance) -> Iterator[dict[str, Any]]:
        """Sends one instance to a method that streams and gives what comes; not closed before its end, it is cancelled.

        An error is a last item `{"error": text}`.

        Raises:
            RuntimeError: A value cannot be sent.
        """
        call = self._predict_stream(self._request(instance))
        try:
            for reply in call:
                result = _read_reply(reply)
                if isinstance(result, dict):
                    yield dict(result)
                    return
                yield from result
        except grpc.RpcError as error:
            yield dict(_grpc_error(error))
        finally:
            call.cancel()

    def close(self) -> None:
        """Closes the connection."""
        self.channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _request(self, instances: Instance | Sequence[Instance]) -> pb.PredictRequest:
        request = pb.PredictRequest(
            servable_spec=pb.ServableSpec(
                name=self.servable_name, method_name=self.method_name, version_number=self.version_number
            )
        )
        for instance in instances if isinstance(instances, (tuple, list)) else (instances,):
            if not isinstance(instance, dict):
                raise RuntimeError("instance should be a map")
            write_instance(request.instances.add(), {name: _to_value(value) for name, value in instance.items()})
        return request


class ClientGrpcAsyncResult:
    """A result that is on its way."""

    def __init__(self, future: Any) -> None:
        self._future = future

    def result(self) -> Result:
        """Waits for it."""
        try:
            return _read_reply(self._future.result())
        except grpc.RpcError as error:
            return _grpc_error(error)


def _open_channel(address: str, config: SSLConfig | None) -> grpc.Channel:
    options = [
        ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ]
    if config is None:
        return grpc.insecure_channel(address, options=options)
    if (config.certificate is None) != (config.private_key is None):
        raise RuntimeError("The certificate and private_key should be passed at the same time")
    ca, key, certificate = (
        None if file is None else Path(file).read_bytes()
        for file in (config.custom_ca, config.private_key, config.certificate)
    )
    credentials = grpc.ssl_channel_credentials(ca, key, certificate)
    return grpc.secure_channel(address, credentials, options=options)


def _to_value(value: Any) -> Value:
    if isinstance(value, str):
        return make_text(value.encode(), "string", (1,))
    if isinstance(value, bytes):
        return make_text(value, "bytes", (1,))
    if isinstance(value, (bool, int, float)) and not isinstance(value, np.generic):
        value = np.array([value])  # the original sends numbers as arrays of one
    if not isinstance(value, (np.ndarray, np.generic)):
        raise RuntimeError("Not support value type " + str(type(value)))
    array = np.asarray(value)
    if array.dtype.kind not in _NUMBERS or array.dtype.itemsize > 8:
        raise RuntimeError("Unknown data type " + str(array.dtype))
    return Value("tensor", array.astype(array.dtype.newbyteorder("="), copy=False))


def _from_value(value: Value) -> Any:
    if value.kind == "tensor":
        return value.array
    items = [item.decode() if value.kind == "string" else item for item in value.array.reshape(-1).tolist()]
    return items[0] if len(items) == 1 else items


def _read_reply(reply: pb.PredictReply) -> Result:
    errors = reply.error_msg
    if len(errors) == 1 and errors[0].error_code != 0:
        return {"error": errors[0].error_msg.decode(errors="replace")}
    if len(errors) not in (0, len(reply.instances)):
        raise RuntimeError(
            f"error msg result size {len(errors)} not be 0, 1 or length of instances {len(reply.instances)}"
        )
    results: list[dict[str, Any]] = []
    for index, instance in enumerate(reply.instances):
        if errors and errors[index].error_code != 0:
            results.append({"error": errors[index].error_msg.decode(errors="replace")})
        else:
            results.append({name: _from_value(read_tensor(tensor)) for name, tensor in instance.items.items()})
    return results


def _grpc_error(error: grpc.RpcError) -> dict[str, str]:
    code, details = error.code(), error.details()
    return {"error": f"Grpc Error, {code.value}, {details}"}
