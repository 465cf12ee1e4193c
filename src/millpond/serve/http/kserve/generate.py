"""`generate` and `generate_stream`: a model asked with a plain JSON object instead of tensors.

Members that are called like an input become that tensor, all others parameters of the request; the answer has the
outputs as members. A stream is server-sent events and has no end marker.
"""

from __future__ import annotations

import math
from contextlib import aclosing
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millpond.serve.http.kserve.errors import error_body, respond_error, status_of
from millpond.serve.http.kserve.exchange import JSON, Exchange
from millpond.serve.http.kserve.json_body import members as members_of
from millpond.serve.http.kserve.json_body import read_json, text, write_json
from millpond.serve.http.kserve.json_tensor import list_from_tensor, tensor_from_json
from millpond.serve.http.kserve.traces import traced
from millpond.serve.http.text_template import TextTemplate
from millpond.serve.kserve.parameters import ClientFault, apply_parameters, plain
from millpond.serve.kserve.server import KServe
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.messages import InferRequest, InferResponse
from millpond.serve.servables.tensors import Tensor, TensorSpec
from millpond.serve.servables.tracing import RequestTrace

_EVENTS = b"text/event-stream; charset=utf-8"
_NOT_ONE = (
    "generate expects model to produce exactly 1 response, use generate stream for model that generates various number "
    "of responses"
)


async def answer_generate(server: KServe, exchange: Exchange, model: str, version: int | None) -> None:
    """Answers with the one response of a model."""
    with traced(server, exchange, model) as trace:
        await _answer_one(server, exchange, model, version, trace)


async def answer_generate_stream(server: KServe, exchange: Exchange, model: str, version: int | None) -> None:
    """Answers with every response of a model as an event."""
    with traced(server, exchange, model) as trace:
        await _answer_all(server, exchange, model, version, trace)


async def _answer_one(
    server: KServe, exchange: Exchange, model: str, version: int | None, trace: RequestTrace | None
) -> None:
    is_strict = server.settings.is_strict
    try:
        request = _read(server, exchange, model, version)
        request.trace = trace
        answers: list[dict[str, Any]] = []
        async with aclosing(server.stream(request)) as responses:
            async for response in responses:
                if response.error is not None:
                    _refuse(exchange, response.error, is_strict=is_strict)
                    return
                if _counts(response):
                    answers.append(_document(request, response))
                if len(answers) > 1:
                    break
    except ServableError as error:
        respond_error(exchange, error, is_strict=is_strict)
        return
    if len(answers) == 1:
        status, body = 200, _encode(answers[0])
    else:
        status, body = (422 if is_strict else 200), error_body(_NOT_ONE)
    try:
        exchange.begin(status, JSON, body)
        await exchange.drained()
        exchange.end()
    except ConnectionResetError:
        return


async def _answer_all(
    server: KServe, exchange: Exchange, model: str, version: int | None, trace: RequestTrace | None
) -> None:
    is_strict = server.settings.is_strict
    try:
        request = _read(server, exchange, model, version)
        request.trace = trace
        events = _Events(exchange, request, is_strict=is_strict)
        await server.pour(request, events.write, exchange)
        events.end()
    except ConnectionResetError:
        return
    except ServableError as error:
        if exchange.is_answered:
            exchange.write(_event(error_body(error.message)))
            exchange.end()
        else:
            respond_error(exchange, error, is_strict=is_strict)


class _Events:
    """Writes responses as events; the head goes with the first of them."""

    def __init__(self, exchange: Exchange, request: InferRequest, *, is_strict: bool) -> None:
        self._exchange = exchange
        self._request = request
        self._is_strict = is_strict
        self._text_of: tuple[str, str, int] | None = None  # output, model and version of the template
        self._template: TextTemplate | None = None

    def write(self, response: InferResponse) -> None:
        """Writes a response.

        Raises:
            ServableError: An output has no form in JSON.
        """
        error = response.error
        if error is None and not _counts(response):
            return
        data = self._of_text(response) if error is None else _event(error_body(error.message))
        if self._exchange.is_answered:
            self._exchange.write(data)
        else:
            self._exchange.begin(200 if error is None else _status(error, is_strict=self._is_strict), _EVENTS, data)

    def end(self) -> None:
        """Ends the answer."""
        if not self._exchange.is_answered:
            self._exchange.begin(200, _EVENTS)
        self._exchange.end()

    def _of_text(self, response: InferResponse) -> bytes:
        """The event of a response; where that is one text, as those of language models are, from a template."""
        if len(response.outputs) == 1:
            ((name, tensor),) = response.outputs.items()
            if tensor.datatype == "BYTES" and tensor.array.size == 1:
                key = (name, response.model, response.version)
                if self._template is None or self._text_of != key:
                    self._text_of = key
                    self._template = TextTemplate(lambda text: self._event_of_text(response, name, text))
                text = tensor.array.item()
                return self._template.fill(text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text))
        return _event(_encode(_document(self._request, response)))

    def _event_of_text(self, response: InferResponse, name: str, text: str) -> bytes:
        output = Tensor(name, "BYTES", np.array([text.encode()], dtype=object))
        return _event(
            _encode(_document(self._request, InferResponse(response.model, response.version, {name: output})))
        )


def _event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


def _status(error: ServableError, *, is_strict: bool) -> int:
    """Whatever a model answers with as an error is a bad request here, as in Triton."""
    return status_of(error, is_strict=True) if is_strict else 400


def _refuse(exchange: Exchange, error: ServableError, *, is_strict: bool) -> None:
    if is_strict:
        respond_error(exchange, error, is_strict=True)
    else:
        exchange.respond(400, [error_body(error.message)], JSON)


def _counts(response: InferResponse) -> bool:
    return bool(response.outputs) or not response.final


def _read(server: KServe, exchange: Exchange, model: str, version: int | None) -> InferRequest:
    config = server.servables.find(model, version).config
    members = members_of(read_json(exchange.request.body))
    request = InferRequest(model, {}, version, arrived_ns=exchange.request.began_ns)
    specs = {spec.name: spec for spec in config.inputs}
    parameters: dict[str, object] = {}
    for name, value in members.items():
        spec = specs.get(name)
        if spec is not None:
            array = _read_tensor(server, spec, value)
            shape = (1, *array.shape) if config.max_batch_size > 0 else array.shape
            request.inputs[name] = Tensor(name, spec.datatype, array.reshape(shape))
        elif name == "parameters":
            if not isinstance(value, dict):
                raise ClientFault(
                    "Expected JSON object for keyword: 'parameters': attempt to access JSON non-object as object"
                )
            for inner, item in value.items():
                parameters[inner] = _converted(inner, item)
        else:
            parameters[name] = value
    if "id" in members:
        request.request_id = text(members["id"], "id")
    apply_parameters(request, parameters)
    return request


def _converted(name: str, value: object) -> object:
    """A member of the keyword "parameters"."""
    try:
        return plain(name, value)
    except ServableError as error:
        raise ServableError(error.code, f"Converting keyword: 'parameters': {error.message}") from None


def _read_tensor(server: KServe, spec: TensorSpec, value: object) -> NDArray[np.generic]:
    elements = value if isinstance(value, list) else [value]
    num_open = spec.dims.count(-1)
    known = math.prod(dim for dim in spec.dims if dim != -1)
    fits = len(elements) == known if not num_open else num_open == 1 and known > 0 and len(elements) % known == 0
    if not fits or any(isinstance(element, list) for element in elements):
        raise ServableError(
            "invalid_argument", f"The schema can not convert input '{spec.name}' to tensor with proper shape"
        )
    flat = tensor_from_json(spec.name, spec.datatype, elements, len(elements), is_strict=server.settings.is_strict)
    return flat.reshape([len(elements) // known if dim == -1 else dim for dim in spec.dims])


def _document(request: InferRequest, response: InferResponse) -> dict[str, Any]:
    document: dict[str, Any] = {"id": request.request_id} if request.request_id else {}
    document["model_name"] = response.model
    document["model_version"] = str(response.version)
    if response.error is None:
        for name in sorted(response.outputs):
            elements = list_from_tensor(response.outputs[name])
            document[name] = elements[0] if len(elements) == 1 else elements
    return document


def _encode(document: dict[str, Any]) -> bytes:
    values = [value for item in document.values() for value in (item if isinstance(item, list) else [item])]
    return write_json(
        document, has_no_numbers=any(isinstance(value, float) and not math.isfinite(value) for value in values)
    )
