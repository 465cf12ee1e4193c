"""An OpenAI-style server as a benchmark target: streams completions over plain HTTP/1.1.

A connection a request, so that no pool of the client is measured. Counts one token an event until the server says how
many it really were (`stream_options.include_usage`).
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urlsplit

import h11

from millpond.base.errors import ConfigError, MillpondError
from millpond.cli.bench.load import Arrival

_TIMEOUT_S = 600.0
_CONNECT_S = 10.0
_WORD_LIST = (
    "time year people way day man thing woman life child world school state family student group country problem "
    "hand part place case week company system program question work number night point home water room mother "
    "area money story fact month lot right study book eye job word business issue side kind head house service "
    "friend father power hour game line end member law car city name team minute idea body back parent face level "
    "office door health person"
)
_WORDS = tuple(_WORD_LIST.split())


class HttpError(MillpondError):
    """A server answered with an error or not at all."""

    code = "http_error"


@dataclass(frozen=True, slots=True)
class RemoteOptions:
    """How to talk to the server."""

    model: str | None = None
    chat: bool = False
    api_key: str | None = None
    ignore_eos: bool = False


class RemoteTarget:
    """Made by `connect`."""

    num_words = len(_WORDS)

    def __init__(self, base: SplitResult, model: str, options: RemoteOptions) -> None:
        self._base = base
        self._model = model
        self._options = options
        self.name = f"{model} at {base.scheme}://{base.netloc}"

    async def stream(self, prompt: Sequence[int], output_tokens: int) -> AsyncIterator[Arrival]:
        """Sends one request and yields what arrives."""
        text = " ".join(_WORDS[number] for number in prompt)
        body: dict[str, Any] = {"model": self._model, "max_tokens": output_tokens, "temperature": 0, "stream": True}
        body["stream_options"] = {"include_usage": True}
        if self._options.ignore_eos:
            body["ignore_eos"] = True
        if self._options.chat:
            body["messages"] = [{"role": "user", "content": text}]
        else:
            body["prompt"] = text
        path = "/chat/completions" if self._options.chat else "/completions"
        async with _request(self._base, path, self._options.api_key, body) as chunks:
            async for event in _events(chunks):
                yield _read_event(event)


async def connect(url: str, options: RemoteOptions) -> RemoteTarget:
    """Finds the server's model and returns the target.

    Raises:
        ConfigError: The text is not an HTTP address.
        HttpError: The server does not answer as one of its kind.
    """
    base = parse_base(url)
    model = options.model
    if model is None:
        async with _request(base, "/models", options.api_key, None) as chunks:
            listing = b"".join([chunk async for chunk in chunks])
        try:
            model = str(json.loads(listing)["data"][0]["id"])
        except (ValueError, LookupError, TypeError):
            raise HttpError(f"{url} lists no model.", fix="Name one with --model-name.") from None
    return RemoteTarget(base, model, options)


def parse_base(url: str) -> SplitResult:
    """Returns the address that `/completions` is put behind: `/v1` unless the URL has a path of its own."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"'{url}' is not an HTTP address.", fix="Write http://HOST:PORT.")
    path = parts.path.rstrip("/")
    for ending in ("/chat/completions", "/completions"):
        path = path.removesuffix(ending)
    return parts._replace(path=path or "/v1")


def _read_event(event: dict[str, Any]) -> Arrival:
    if "error" in event:
        detail = event["error"]
        raise HttpError(str(detail.get("message", detail)) if isinstance(detail, dict) else str(detail))
    usage = event.get("usage") or {}
    tokens = 0
    for choice in event.get("choices") or ():
        delta = choice.get("delta") or {}
        tokens += int(bool(choice.get("text") or delta.get("content") or delta.get("reasoning_content")))
    return Arrival(tokens, usage.get("prompt_tokens"), usage.get("completion_tokens"))


async def _events(chunks: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
    """Yields the JSON objects of a server-sent event stream."""
    rest = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            data = line.strip().removeprefix(b"data:").strip()
            if line.startswith(b"data:") and data != b"[DONE]":
                yield json.loads(data)


@asynccontextmanager
async def _request(
    base: SplitResult, path: str, api_key: str | None, body: dict[str, Any] | None
) -> AsyncIterator[AsyncIterator[bytes]]:
    """Sends a request (POST when there is a body) and yields the answer's body, piece by piece."""
    assert base.hostname is not None
    secure = ssl.create_default_context() if base.scheme == "https" else None
    port = base.port or (443 if secure else 80)
    try:
        async with asyncio.timeout(_CONNECT_S):
            reader, writer = await asyncio.open_connection(base.hostname, port, ssl=secure)
    except (OSError, TimeoutError) as error:
        raise HttpError(f"{base.hostname}:{port} does not answer: {error or 'timed out'}.") from error
    try:
        connection = h11.Connection(h11.CLIENT)
        writer.write(_encode(connection, base, path, api_key, body))
        yield _body(connection, reader, base, path)
    finally:
        writer.close()


def _encode(
    connection: h11.Connection, base: SplitResult, path: str, api_key: str | None, body: dict[str, Any] | None
) -> bytes:
    payload = b"" if body is None else json.dumps(body).encode()
    headers = [("Host", base.netloc.rpartition("@")[2]), ("Accept", "*/*"), ("Connection", "close")]
    if body is not None:
        headers += [("Content-Type", "application/json"), ("Content-Length", str(len(payload)))]
    if api_key is not None:
        headers.append(("Authorization", f"Bearer {api_key}"))
    request = h11.Request(method="GET" if body is None else "POST", target=base.path + path, headers=headers)
    parts = [connection.send(request), connection.send(h11.Data(data=payload)), connection.send(h11.EndOfMessage())]
    return b"".join(part for part in parts if part)


async def _body(
    connection: h11.Connection, reader: asyncio.StreamReader, base: SplitResult, path: str
) -> AsyncIterator[bytes]:
    status = 0
    refused = b""
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            try:
                async with asyncio.timeout(_TIMEOUT_S):
                    connection.receive_data(await reader.read(1 << 16))
            except TimeoutError:
                raise HttpError(f"{base.netloc} sent nothing for {_TIMEOUT_S:.0f} s.") from None
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            if status < 400:
                yield bytes(event.data)
            else:
                refused += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            break
        elif isinstance(event, h11.ConnectionClosed):
            raise HttpError(f"{base.netloc} closed the connection before its answer.")
    if status >= 400:
        raise HttpError(f"{base.netloc}{base.path}{path} answered {status}: {refused[:300].decode(errors='replace')}")
