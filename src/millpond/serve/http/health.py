"""/health, /ready and /metrics: what operators and their machines ask."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from millpond.serve.gateway import Gateway, GatewayStatus
from millpond.serve.http.errors import RETRY_AFTER_S
from millpond.serve.prometheus import CONTENT_TYPE


class Health(msgspec.Struct, frozen=True):
    """The process is alive."""

    status: str


class Readiness(msgspec.Struct, frozen=True):
    """Whether requests are welcome. While loading, `stage` and `fraction` say how far it is."""

    status: GatewayStatus
    model: str | None
    stage: str | UnsetType = UNSET
    fraction: float | UnsetType = UNSET


class HealthRoutes:
    """The routes; none of them needs a key."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def health(self, request: Request) -> Response:
        """Answers 200 as long as the process answers at all."""
        return Response(msgspec.json.encode(Health("ok")), media_type="application/json")

    async def ready(self, request: Request) -> Response:
        """Answers 200 while requests are welcome, else 503."""
        gateway = self._gateway
        status = gateway.status
        model = gateway.engine.info.model if gateway.engine is not None else None
        readiness = Readiness(status, model)
        if status == "loading":
            readiness = Readiness(status, model, gateway.load_stage or UNSET, gateway.load_fraction)
        is_ready = status == "ready"
        return Response(
            msgspec.json.encode(readiness),
            200 if is_ready else 503,
            headers={} if is_ready else {"Retry-After": str(int(RETRY_AFTER_S))},
            media_type="application/json",
        )

    async def metrics(self, request: Request) -> Response:
        """Answers with the Prometheus page."""
        gateway = self._gateway
        engine = gateway.engine
        page = gateway.metrics.page(
            None if engine is None else engine.info,
            None if engine is None else engine.stats,
            gateway.status == "ready",
        )
        return Response(page, headers={"Content-Type": CONTENT_TYPE})
