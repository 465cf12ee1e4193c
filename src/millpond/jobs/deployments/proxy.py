"""Lets requests through to replicas: bytes in, bytes out, as they come.

HTTP is aiohttp's on both sides. A request is offered to another replica as long as nothing of an answer has been passed
on: when a replica cannot be reached, closes without a word, or says 503. What was passed on is never taken back; an
answer that breaks off breaks off for the client too. Called by the keeper, which owns the balancer.
"""

from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from millpond.jobs.deployments.balance import Backend, Balancer, NoReplicaError

VERSION_HEADER = "X-Millpond-Version"
REPLICA_HEADER = "X-Millpond-Replica"
OWN_PATH = "/-/gateway/"
_KEPT_BODY = 1 << 20  # a request up to this size can be offered to another replica after it was sent to one
_RETRY_AFTER_S = "1"
_CONNECT_S = 5.0
_OWN_LIMITS = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.EADDRNOTAVAIL))
_HOP_BY_HOP = frozenset(
    ("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
     "transfer-encoding", "upgrade")
)  # fmt: skip
_AUTO_HEADERS = ("Accept", "Accept-Encoding", "User-Agent", "Content-Type")


@dataclass(slots=True)
class Counts:
    """What happened to requests of one version."""

    requests: int = 0
    retries: int = 0
    failures: int = 0  # answers that this proxy had to make up, or that broke off
    by_class: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Body:
    """A request's body: kept whole when it is small, else passed on once."""

    kept: bytes
    rest: aiohttp.StreamReader | None = None
    is_used: bool = False

    @property
    def can_repeat(self) -> bool:
        """Whether it can be sent again."""
        return self.rest is None or not self.is_used

    def data(self) -> bytes | AsyncIterator[bytes] | None:
        """What is sent."""
        return self._pieces() if self.rest is not None else self.kept or None

    async def _pieces(self) -> AsyncIterator[bytes]:
        assert self.rest is not None
        self.is_used = True
        yield self.kept
        async for piece in self.rest.iter_any():
            yield piece


class Proxy:
    """Passes requests on.

    Args:
        balancer: Who gets them.
        on_unreachable: Told of a replica that takes no connections.
    """

    def __init__(self, balancer: Balancer, on_unreachable: Callable[[Backend], None]) -> None:
        self._balancer = balancer
        self._on_unreachable = on_unreachable
        self._session: aiohttp.ClientSession | None = None
        self.counts: dict[str, Counts] = {}

    async def start(self) -> None:
        """Opens the pool of connections."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=4.0),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
            read_bufsize=1 << 16,
            max_line_size=1 << 16,
            max_field_size=1 << 16,
        )

    async def close(self) -> None:
        """Closes the connections."""
        if self._session is not None:
            await self._session.close()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answers one request."""
        if "upgrade" in request.headers:
            return refusal(501, "not_supported", "This gateway passes on plain HTTP/1.1 only.")
        try:
            body = await self._read_body(request)
        except TimeoutError:
            return refusal(408, "timeout", "The rest of the request did not come.")
        pinned = request.headers.get(VERSION_HEADER, "")
        if pinned and pinned not in self._balancer.weights:
            return refusal(404, "no_such_version", f"There is no version '{pinned[:40]}'.")
        tried: frozenset[str] = frozenset()
        for attempt in range(self._balancer.limits.retries + 1):
            try:
                backend = await self._balancer.take(pinned, tried)
            except NoReplicaError as error:
                return refusal(503, error.code, str(error))
            counts = self.counts.setdefault(backend.version, Counts())
            counts.requests += attempt == 0
            counts.retries += attempt > 0
            is_last = attempt == self._balancer.limits.retries
            try:
                answer = await self._offer(request, body, backend, is_last=is_last)
            finally:
                self._balancer.give_back(backend)
            if answer is not None:
                kind = f"{answer.status // 100}xx"
                counts.by_class[kind] = counts.by_class.get(kind, 0) + 1
                return answer
            if not body.can_repeat:
                break
            tried |= {backend.uid}
        counts.failures += 1
        return refusal(502, "replica_failed", "The replicas that were asked did not answer.")

    async def _offer(
        self, request: web.BaseRequest, body: Body, backend: Backend, *, is_last: bool
    ) -> web.StreamResponse | None:
        """Asks one replica. None: nothing came of it, and another one may be asked."""
        limits = self._balancer.limits
        assert self._session is not None
        try:
            async with asyncio.timeout(limits.timeout_s) as patience:
                answer = await self._session.request(
                    request.method,
                    URL(f"http://{backend.host}:{backend.port}{_target(request)}", encoded=True),
                    headers=_forward_headers(request),
                    data=body.data(),
                    allow_redirects=False,
                    skip_auto_headers=_AUTO_HEADERS,
                )
                patience.reschedule(None)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            if getattr(error, "errno", None) in _OWN_LIMITS:  # not the replica's fault, and another one would not help
                return refusal(503, "gateway_busy", "The gateway has no room for another connection.")
            self._on_unreachable(backend)
            return None
        except TimeoutError:
            self.counts[backend.version].failures += 1
            return refusal(504, "timeout", f"The replica did not answer within {limits.timeout_s:g} s.")
        except aiohttp.ClientError:
            return None
        async with answer:
            can_ask_others = not is_last and body.can_repeat and self._has_other(backend)
            if answer.status == 503 and can_ask_others:
                return None
            return await self._pass_on(request, answer, backend)

    async def _pass_on(
        self, request: web.BaseRequest, answer: aiohttp.ClientResponse, backend: Backend
    ) -> web.StreamResponse:
        headers = _end_to_end(answer.headers)
        headers[VERSION_HEADER], headers[REPLICA_HEADER] = backend.version, backend.name
        out = web.StreamResponse(status=answer.status, reason=answer.reason, headers=headers)
        await out.prepare(request)
        idle_s = self._balancer.limits.idle_timeout_s
        is_writing = False
        try:
            while True:
                async with asyncio.timeout(idle_s):
                    piece = await answer.content.readany()
                is_writing = True
                async with asyncio.timeout(idle_s):
                    await (out.write(piece) if piece else out.write_eof())
                if not piece:
                    return out
                is_writing = False
        except (aiohttp.ClientError, ConnectionError, TimeoutError):
            # Too late for another replica: the client must see that the answer is not whole. One that takes nothing
            # any more is let go, so that its replica is free.
            self.counts[backend.version].failures += not is_writing
            if request.transport is not None:
                request.transport.abort()
            return out

    async def _read_body(self, request: web.BaseRequest) -> Body:
        """The body, or its beginning when it is large. Raises `TimeoutError` for a client that stops sending."""
        if not request.body_exists:
            return Body(b"")
        if request.headers.get("Expect", "").casefold() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        kept = bytearray()
        while len(kept) <= _KEPT_BODY:
            async with asyncio.timeout(self._balancer.limits.idle_timeout_s):
                piece = await request.content.readany()
            if not piece and request.content.at_eof():
                return Body(bytes(kept))
            kept += piece
        return Body(bytes(kept), request.content)

    def _has_other(self, backend: Backend) -> bool:
        return any(
            other.is_open and other is not backend and other.version == backend.version
            for other in self._balancer.backends.values()
        )

    def page(self, backends: dict[str, Backend]) -> str:
        """The counts as a Prometheus page; its only labels are versions, their number is bounded."""
        lines = [
            "# TYPE millpond_gateway_waiting_requests gauge",
            f"millpond_gateway_waiting_requests {self._balancer.num_waiting}",
            "# TYPE millpond_gateway_open_requests gauge",
        ]
        versions = {backend.version for backend in backends.values()} | set(self.counts)
        for version in sorted(versions):
            open_requests = sum(b.in_flight for b in backends.values() if b.version == version)
            lines.append(f'millpond_gateway_open_requests{{version="{version}"}} {open_requests}')
        for name in ("requests", "retries", "failures"):
            lines.append(f"# TYPE millpond_gateway_{name}_total counter")
            for version, counts in sorted(self.counts.items()):
                lines.append(f'millpond_gateway_{name}_total{{version="{version}"}} {getattr(counts, name)}')
        lines.append("# TYPE millpond_gateway_answers_total counter")
        for version, counts in sorted(self.counts.items()):
            for kind, number in sorted(counts.by_class.items()):
                lines.append(f'millpond_gateway_answers_total{{version="{version}",status="{kind}"}} {number}')
        return "\n".join(lines) + "\n"


def refusal(status: int, code: str, message: str) -> web.Response:
    """An answer of the gateway itself."""
    headers = {"Retry-After": _RETRY_AFTER_S} if status == 503 else {}
    text = json.dumps({"error": {"code": code, "type": code, "message": message}})
    return web.Response(status=status, text=text, content_type="application/json", headers=headers)


def _target(request: web.BaseRequest) -> str:
    """Path and query as they were written, whatever host an absolute one names."""
    path = request.rel_url.raw_path_qs
    return path if path.startswith("/") else f"/{path}"


def _end_to_end(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    named = {name.strip().casefold() for text in headers.getall("Connection", ()) for name in text.split(",")}
    kept: CIMultiDict[str] = CIMultiDict()
    for name, value in headers.items():
        if name.casefold() not in _HOP_BY_HOP and name.casefold() not in named:
            kept.add(name, value)
    return kept


def _forward_headers(request: web.BaseRequest) -> CIMultiDict[str]:
    headers = _end_to_end(request.headers)
    headers.popall("Expect", None)
    headers.popall(VERSION_HEADER, None)
    came_by = [*headers.popall("X-Forwarded-For", ()), *([request.remote] if request.remote else [])]
    if came_by:
        headers["X-Forwarded-For"] = ", ".join(came_by)
    headers.setdefault("X-Forwarded-Proto", "http")
    if request.host:
        headers.setdefault("X-Forwarded-Host", request.host)
    return headers
