"""The cheapest client of each protocol's stream of a language model, all built alike for `protocols`.

A client is a connection that stays open, without a library: it notes when the first piece came and when the last, keeps
the bytes, and reads them when nobody measures any more. So what differs between two ways is the server's doing: gRPC's
own client takes more of the machine for a token than the server does.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from millpond.serve.proto import inference_pb2 as pb
from millpond.serve.proto import ms_service_pb2 as ms

_HEADERS, _DATA, _SETTINGS, _PING = 1, 0, 4, 6
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_WINDOW = 1 << 30
_TIMEOUT_S = 300.0  # the machine may stand still for a while


@dataclass(slots=True)
class Answer:
    """What came back for one request: when its pieces came, in seconds from its sending, and the bytes."""

    pieces_s: list[float]
    raw: bytes


class Line(asyncio.Protocol):
    """A connection; one request at a time.

    Attributes:
        pieces: When the pieces of the running answer came.
    """

    def __init__(self) -> None:
        self._transport: Any = None
        self._raw = bytearray()
        self.pieces: list[float] = []
        self._done: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(ConnectionResetError(bytes(self._raw[-500:]).decode("latin-1")))

    async def ask(self, request: bytes) -> Answer:
        """Sends a request and waits for the end of its answer."""
        self._raw.clear()
        self.pieces.clear()
        self._done = asyncio.get_running_loop().create_future()
        began = time.perf_counter()
        self._transport.write(self.prepared(request))
        async with asyncio.timeout(_TIMEOUT_S):
            await self._done
        return Answer([piece - began for piece in self.pieces], bytes(self._raw))

    def prepared(self, request: bytes) -> bytes:
        """Returns the bytes of a request."""
        return request

    def close(self) -> None:
        """Hangs up."""
        self._transport.close()

    def note(self, data: bytes, *, has_piece: bool, is_last: bool) -> None:
        """Keeps what came."""
        if has_piece:
            self.pieces.append(time.perf_counter())
        self._raw += data
        if is_last and self._done is not None and not self._done.done():
            self._done.set_result(None)


class EventLine(Line):
    """Server-sent events over HTTP/1.1."""

    def data_received(self, data: bytes) -> None:
        self.note(data, has_piece=b"data:" in data, is_last=data.endswith(b"0\r\n\r\n"))


class GrpcLine(Line):
    """One method of gRPC over HTTP/2, with windows that are never full."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._head = b"".join(
            _literal(name, value)
            for name, value in (
                (":method", "POST"),
                (":scheme", "http"),
                (":path", path),
                (":authority", "localhost"),
                ("content-type", "application/grpc"),
                ("te", "trailers"),
            )
        )
        self._stream = -1
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        window = _WINDOW.to_bytes(4, "big")
        settings = _frame(_SETTINGS, 0, 0, b"\0\4" + window)
        self._transport.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings + _frame(8, 0, 0, window))

    def prepared(self, request: bytes) -> bytes:
        self._stream += 2
        message = b"\0" + len(request).to_bytes(4, "big") + request
        head = _frame(_HEADERS, _END_HEADERS, self._stream, self._head)
        return head + _frame(_DATA, _END_STREAM, self._stream, message)

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        at, pieces, is_last = 0, [], False
        while len(data) - at >= 9 and len(data) - at - 9 >= (size := int.from_bytes(data[at : at + 3], "big")):
            kind, flags = data[at + 3], data[at + 4]
            payload = data[at + 9 : at + 9 + size]
            if kind == _DATA:
                pieces.append(payload)
            elif kind == _HEADERS and flags & _END_STREAM:
                is_last = True
            elif kind in (_SETTINGS, _PING) and not flags & _ACK:
                self._transport.write(_frame(kind, _ACK, 0, payload if kind == _PING else b""))
            at += 9 + size
        self._rest = data[at:]
        self.note(b"".join(pieces), has_piece=bool(pieces), is_last=is_last)


class MakeLine(Protocol):
    """Makes a client."""

    def __call__(self) -> Line: ...


@dataclass(frozen=True, slots=True)
class Dialect:
    """One way to ask.

    Attributes:
        address: "host:port".
        line: Makes its client.
        request: A request's bytes, of a prompt and a number of tokens.
        text: What the bytes of an answer say.
    """

    name: str
    address: str
    line: MakeLine
    request: Callable[[str, int], bytes]
    text: Callable[[bytes], str]

    async def connect(self) -> Line:
        """Returns a new client."""
        host, _, port = self.address.rpartition(":")
        _, line = await asyncio.get_running_loop().create_connection(self.line, host, int(port))
        return line


def openai(address: str, model: str, name: str = "openai") -> Dialect:
    def body(prompt: str, count: int) -> dict[str, Any]:
        return {"model": model, "prompt": prompt, "max_tokens": count, "temperature": 0, "stream": True}

    return _events(name, address, "/v1/completions", body, lambda event: event["choices"][0]["text"])


def tgi(address: str) -> Dialect:
    def body(prompt: str, count: int) -> dict[str, Any]:
        return {"inputs": prompt, "parameters": {"max_new_tokens": count, "do_sample": False}}

    def text(event: dict[str, Any]) -> str:
        return "" if event["token"]["special"] else str(event["token"]["text"])

    return _events("tgi", address, "/generate_stream", body, text)


def triton_http(address: str, model: str) -> Dialect:
    def body(prompt: str, count: int) -> dict[str, Any]:
        return {"text_input": prompt, "stream": True, "sampling_parameters": _sampling(count)}

    path = f"/v2/models/{model}/generate_stream"
    return _events("triton http", address, path, body, lambda event: event["text_output"])


def mindspore_rest(address: str, model: str) -> Dialect:
    def body(prompt: str, count: int) -> dict[str, Any]:
        return {"instances": [{"text_input": prompt, "sampling_parameters": _sampling(count)}]}

    def text(event: dict[str, Any]) -> str:
        (instance,) = event["instances"]
        return str(instance["text_output"])

    return _events("mindspore rest", address, f"/model/{model}:generated_stream", body, text)


def triton_grpc(address: str, model: str) -> Dialect:
    def request(prompt: str, count: int) -> bytes:
        message = pb.ModelInferRequest(model_name=model)
        for name, value in (("text_input", prompt), ("sampling_parameters", _sampling(count))):
            message.inputs.add(name=name, datatype="BYTES", shape=[1])
            content = value.encode()
            message.raw_input_contents.append(len(content).to_bytes(4, "little") + content)
        message.inputs.add(name="stream", datatype="BOOL", shape=[1])
        message.raw_input_contents.append(b"\x01")
        return message.SerializeToString()

    def text(raw: bytes) -> str:
        answers = [pb.ModelStreamInferResponse.FromString(message) for message in _messages(raw)]
        assert not any(answer.error_message for answer in answers), answers
        return "".join(answer.infer_response.raw_output_contents[0][4:].decode() for answer in answers)

    path = "/inference.GRPCInferenceService/ModelStreamInfer"
    return Dialect("triton grpc", address, lambda: GrpcLine(path), request, text)


def mindspore_grpc(address: str, model: str) -> Dialect:
    def request(prompt: str, count: int) -> bytes:
        message = ms.PredictRequest()
        message.servable_spec.name = model
        message.servable_spec.method_name = "generated_stream"
        instance = message.instances.add()
        for name, value in (("text_input", prompt), ("sampling_parameters", _sampling(count))):
            tensor = instance.items[name]
            tensor.dtype = ms.MS_STRING
            tensor.bytes_val.append(value.encode())
        return message.SerializeToString()

    def text(raw: bytes) -> str:
        replies = [ms.PredictReply.FromString(message) for message in _messages(raw)]
        assert not any(reply.error_msg for reply in replies), replies
        return "".join(reply.instances[0].items["text_output"].bytes_val[0].decode() for reply in replies)

    path = "/mindspore.serving.proto.MSService/PredictStream"
    return Dialect("mindspore grpc", address, lambda: GrpcLine(path), request, text)


def _sampling(max_tokens: int) -> str:
    return json.dumps({"temperature": 0, "max_tokens": max_tokens})


def _events(
    name: str,
    address: str,
    path: str,
    body: Callable[[str, int], dict[str, Any]],
    text: Callable[[dict[str, Any]], str],
) -> Dialect:
    def request(prompt: str, count: int) -> bytes:
        content = json.dumps(body(prompt, count)).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
        return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content

    def said(raw: bytes) -> str:
        assert raw.startswith(b"HTTP/1.1 200"), raw[:1000]
        # An event is one chunk or more, and its JSON one line.
        lines = (line for line in raw.split(b"\n") if line.startswith(b"data:") and b"[DONE]" not in line)
        return "".join(text(json.loads(line[5:])) for line in lines)

    return Dialect(name, address, EventLine, request, said)


def _messages(raw: bytes) -> list[bytes]:
    messages, at = [], 0
    while at < len(raw):
        size = int.from_bytes(raw[at + 1 : at + 5], "big")
        messages.append(raw[at + 5 : at + 5 + size])
        at += 5 + size
    return messages


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def _literal(name: str, value: str) -> bytes:
    """A header as HPACK says it without its tables."""
    return b"\0" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode()
