"""GET /v1/models and /v1/models/{id}: what is served."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from millpond.base.errors import ModelNotFoundError
from millpond.serve.gateway import Gateway
from millpond.serve.http.openai.replies import ModelCard, ModelList


class ModelRoutes:
    """The two routes.

    Args:
        gateway: The serving process.
        created: Unix time at which the server started.
    """

    def __init__(self, gateway: Gateway, created: int) -> None:
        self._gateway = gateway
        self._created = created

    async def list(self, request: Request) -> Response:
        """Answers GET /v1/models."""
        return _json(ModelList("list", [self._card()]))

    async def get(self, request: Request) -> Response:
        """Answers GET /v1/models/{id}."""
        card = self._card()
        name = request.path_params["id"]
        if name != card.id:
            raise ModelNotFoundError(f"The model {name[:200]!a} does not exist here.", param="model")
        return _json(card)

    def _card(self) -> ModelCard:
        info = self._gateway.ready_engine().info
        return ModelCard(info.model, "model", self._created, "millpond", info.model, None, info.max_model_len)


def _json(value: ModelCard | ModelList) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
