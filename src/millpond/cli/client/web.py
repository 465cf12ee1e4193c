"""JSON and server-sent events over HTTP, with the standard library alone.

What the client commands and `millpond repository` share. A server's error becomes one sentence, whatever form its
protocol gives it.
"""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import SplitResult, urlsplit

from millpond.base.errors import ConfigError, MillpondError

TIMEOUT_S = 600.0
_LONGEST_LINE = 16 << 20


class ServerError(MillpondError):
    """A server refused a request, failed, or does not answer."""

    code = "server_error"


class Web:
    """One server.

    Args:
        url: http://HOST:PORT, with a path that is put before all others.
        headers: Sent with every request.
    """

    def __init__(self, url: str, headers: Mapping[str, str] | None = None) -> None:
        self._base = _parse(url)
        self._headers = dict(headers or {})

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """Sends a request and returns the JSON of the answer; None when it has no body.

        Raises:
            ServerError: The server does not answer, or answers with an error.
        """
        with self._answer(method, path, body) as answer:
            content = answer.read()
        if not content:
            return None
        try:
            return json.loads(content)
        except ValueError:
            raise ServerError(f"{path} was answered with something that is not JSON.", fix="Check --url.") from None

    def text(self, path: str) -> str:
        """Returns a text.

        Raises:
            ServerError: The server does not answer, or answers with an error.
        """
        with self._answer("GET", path, None) as answer:
            return answer.read().decode("utf-8", "replace")

    def events(self, path: str, body: object) -> Iterator[dict[str, Any]]:
        """Posts a request and yields the JSON of every event, until the stream or `[DONE]` ends it.

        Raises:
            ServerError: The server does not answer, or an event says that something failed.
        """
        with self._answer("POST", path, body) as answer:
            while line := answer.readline(_LONGEST_LINE):
                field, _, value = line.decode("utf-8", "replace").partition(":")
                value = value.strip()
                if field.strip() != "data" or not value:
                    continue
                if value == "[DONE]":
                    return
                event = json.loads(value)
                if isinstance(event, dict) and event.get("error"):
                    raise ServerError(_message(event))
                yield event

    @contextlib.contextmanager
    def _answer(self, method: str, path: str, body: object) -> Iterator[http.client.HTTPResponse]:
        base = self._base
        kind = http.client.HTTPSConnection if base.scheme == "https" else http.client.HTTPConnection
        connection = kind(base.hostname or "", base.port, timeout=TIMEOUT_S)
        content = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **self._headers}
        try:
            connection.request(method, f"{base.path.rstrip('/')}{path}", content, headers)
            answer = connection.getresponse()
            if answer.status >= 400:
                raise ServerError(f"The server answered {answer.status}: {_read_error(answer)}")
            yield answer
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(
                f"{base.scheme}://{base.netloc} does not answer: {error}.", fix="Check --url, and that it runs."
            ) from None
        finally:
            connection.close()


def _parse(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        port_is_right = parts.port is None or parts.port >= 0
    except ValueError:
        port_is_right = False
    if not port_is_right or parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"'{url}' is not an HTTP address.", fix="Write http://HOST:PORT.")
    return parts


def _read_error(answer: http.client.HTTPResponse) -> str:
    content = answer.read(1 << 16)
    try:
        return _message(json.loads(content))
    except ValueError:
        return content.decode("utf-8", "replace").strip() or answer.reason


def _message(document: Any) -> str:
    """The sentence in an error of any of the protocols."""
    if not isinstance(document, dict):
        return str(document)
    error = document.get("error", document.get("error_msg", document.get("message", document)))
    if isinstance(error, dict):
        error = error.get("message", error)
    return str(error)
