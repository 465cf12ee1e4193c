"""`KServe`: what a server answers beside inference, as plain documents that both forms of the protocol send.

Owns the server-wide settings that clients can change and the shared memory they registered; servables and models are
the registry's and the repository's. Names and texts are Triton's.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, cast

from millpond.serve.kserve.log_settings import LogSettings
from millpond.serve.kserve.model_metrics import ModelMetrics
from millpond.serve.kserve.settings import EXTENSIONS, TritonSettings
from millpond.serve.kserve.shared_memory import SharedRegions
from millpond.serve.kserve.trace_settings import TraceSettings
from millpond.serve.kserve.tracer import Tracer
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.registry import IndexEntry, Servables
from millpond.serve.servables.statistics import Durations, ResponseStatistics, ServableStatistics

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from millpond.serve.room import Room
    from millpond.serve.servables.config import ServableConfig
    from millpond.serve.servables.messages import InferRequest, InferResponse
    from millpond.serve.servables.pouring import Write
    from millpond.serve.servables.tensors import TensorSpec

Document = dict[str, object]
_COUNTED = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")


class Repository(Protocol):
    """What the protocol asks of a model repository."""

    async def load(
        self,
        name: str,
        config_override: Mapping[str, object] | str | None = None,
        files: Mapping[str, bytes] | None = None,
    ) -> None: ...

    async def unload(self, name: str, dependents: bool = False) -> None: ...

    async def index(self, ready_only: bool = False) -> list[IndexEntry]: ...


class KServe:
    """One server.

    Args:
        servables: What is served.
        repository: Where models come from; None when there is no folder of models.
        settings: How it behaves.
        published: Metrics that models publish.
    """

    def __init__(
        self,
        servables: Servables,
        repository: Repository | None,
        settings: TritonSettings,
        published: ModelMetrics | None = None,
    ) -> None:
        self.servables = servables
        self.settings = settings
        self.regions = SharedRegions(is_allowed=settings.allow_shared_memory)
        self.logging = LogSettings()
        self.tracing = TraceSettings(settings)
        self.tracer = Tracer(self.tracing, settings.trace_file)
        self.published = published or ModelMetrics()
        self.is_draining = False
        self.is_starting = False
        self._repository = repository

    def is_ready(self) -> bool:
        """Whether requests are welcome."""
        if self.is_draining or self.is_starting:
            return False
        if not self.settings.is_ready_strict:
            return True
        names = {entry.name for entry in self.servables.index() if entry.state in ("LOADING", "UNAVAILABLE")}
        return all(self.servables.versions(name) for name in names if not self._was_unloaded(name))

    def is_model_ready(self, name: str, version: int | None) -> bool:
        """Whether a model, or one version of it, answers."""
        versions = self.servables.versions(name)
        return bool(versions) if version is None else version in versions

    def stream(self, request: InferRequest) -> AsyncGenerator[InferResponse, None]:
        """Gives the responses of any servable; closing it cancels the request."""
        return cast("AsyncGenerator[InferResponse, None]", self.servables.stream(request))

    async def pour(self, request: InferRequest, write: Write, room: Room) -> None:
        """Gives the responses of any servable to `write` where they come about; see `Servables.pour`."""
        await self.servables.pour(request, write, room)

    def metadata(self) -> Document:
        """Describes the server."""
        settings = self.settings
        return {"name": settings.server_name, "version": settings.server_version, "extensions": list(EXTENSIONS)}

    def model_metadata(self, name: str, version: int | None) -> Document:
        """Describes a model.

        Raises:
            ServableError: There is none.
        """
        config = self.servables.find(name, version).config
        versions = self.servables.versions(name) if version is None else [version]
        return {
            "name": name,
            "versions": [str(number) for number in versions],
            "platform": config.platform or config.backend,
            "inputs": [_describe(spec, config) for spec in config.inputs],
            "outputs": [_describe(spec, config) for spec in config.outputs],
        }

    def model_config(self, name: str, version: int | None) -> Document:
        """Returns a model's configuration as Triton's document.

        Raises:
            ServableError: There is no such model.
        """
        from millpond.serve.repository.triton_config import to_document

        return to_document(self.servables.find(name, version).config)

    def summary(self, name: str, version: int | None) -> Document:
        """Returns the methods of a model with the types of their tensors.

        Raises:
            ServableError: There is no such model.
        """
        from millpond.serve.descriptions.contracts import summarize

        servable = self.servables.find(name, version)
        return summarize(servable.config, servable.version)

    def openapi(self, name: str | None = None, version: int | None = None) -> Document:
        """Returns the OpenAPI document of a model, or of all that answer.

        Raises:
            ServableError: There is no such model.
        """
        from millpond.serve.descriptions.openapi import make_openapi

        names = [name] if name is not None else [one for one in self.servables.names() if self.servables.versions(one)]
        configs = [self.servables.find(one, version).config for one in names]
        return make_openapi(configs, self.settings.server_version)

    def proto(self, name: str, version: int | None) -> str:
        """Returns the proto file of a model.

        Raises:
            ServableError: There is no such model.
        """
        from millpond.serve.descriptions.proto import make_proto

        return make_proto(self.servables.find(name, version).config)

    def statistics(self, name: str | None, version: int | None) -> Document:
        """Returns the counters of all models, of one, or of one version.

        Raises:
            ServableError: There is no such model.
        """
        return {"model_stats": [_count(item) for item in self.servables.statistics(name, version)]}

    async def index(self, *, is_ready: bool) -> list[Document]:
        """Lists models and their states."""
        if self._repository is not None:
            entries: Sequence[IndexEntry] = await self._repository.index(is_ready)
        else:
            entries = [entry for entry in self.servables.index() if not is_ready or entry.state == "READY"]
        documents = []
        for entry in entries:
            document: Document = {"name": entry.name}
            if entry.version:
                document["version"] = str(entry.version)
            if entry.state:
                document["state"] = entry.state
            if entry.reason and entry.state != "UNLOADING":  # Triton says why only once it is over
                document["reason"] = entry.reason
            documents.append(document)
        return documents

    async def load(self, name: str, parameters: Mapping[str, object]) -> None:
        """Loads a model; `config` and `file:PATH` of the parameters stand in for files of its folder.

        Raises:
            ServableError: It cannot be loaded.
        """
        config: str | None = None
        files: dict[str, bytes] = {}
        for key, value in parameters.items():
            if key == "config":
                if not isinstance(value, str):
                    raise ServableError("invalid_argument", "load parameter 'config' is not a text")
                config = value
            elif key.startswith("file:"):
                files[key.removeprefix("file:")] = _content(key, value)
            else:
                raise ServableError(
                    "invalid_argument", f"unrecognized parameter '{key}' in load request for model '{name}'"
                )
        await self._models().load(name, config, files or None)

    async def unload(self, name: str, *, dependents: bool) -> None:
        """Unloads a model; one that is not loaded is no error.

        Raises:
            ServableError: Unloading is not allowed.
        """
        await self._models().unload(name, dependents)

    def check_model(self, name: str) -> None:
        """Raises when trace settings cannot be about this model.

        Raises:
            ServableError: It is not served.
        """
        if not self.servables.versions(name):
            raise ServableError("invalid_argument", f"Request for unknown model : {name}")

    def close(self) -> None:
        """Frees what clients registered and ends the files of traces."""
        self.regions.close()
        self.tracer.close()

    def _models(self) -> Repository:
        if self._repository is None:
            raise ServableError("unavailable", "explicit model load / unload is not allowed without a model repository")
        return self._repository

    def _was_unloaded(self, name: str) -> bool:
        return all(entry.reason == "unloaded" for entry in self.servables.index() if entry.name == name)


def _content(key: str, value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise ServableError("invalid_argument", f"load parameter '{key}' is not the base64 text of a file")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise ServableError("invalid_argument", f"load parameter '{key}' is not the base64 text of a file") from None


def _describe(spec: TensorSpec, config: ServableConfig) -> Document:
    shape = ([-1] if config.max_batch_size > 0 else []) + list(spec.dims)
    return {"name": spec.name, "datatype": spec.datatype, "shape": shape}


def _count(stats: ServableStatistics) -> Document:
    return {
        "name": stats.name,
        "version": str(stats.version),
        "last_inference": stats.last_inference_ms,
        "inference_count": stats.inference_count,
        "execution_count": stats.execution_count,
        "inference_stats": {name: _duration(getattr(stats, name)) for name in _COUNTED},
        "response_stats": {str(index): _response(item) for index, item in sorted(stats.responses.items())},
        "batch_stats": [
            {
                "batch_size": size,
                "compute_input": _duration(batch.compute_input),
                "compute_infer": _duration(batch.compute_infer),
                "compute_output": _duration(batch.compute_output),
            }
            for size, batch in sorted(stats.batches.items())
        ],
        "memory_usage": [],
    }


def _response(item: ResponseStatistics) -> Document:
    return {
        name: _duration(getattr(item, name))
        for name in ("compute_infer", "compute_output", "success", "fail", "empty_response", "cancel")
    }


def _duration(item: Durations) -> Document:
    return {"count": item.count, "ns": item.ns}
