"""`Hosting`: the servables of a process and the ports that serve them, beside an engine or without one.

Builds the back ends, the registry and the repository from the settings, opens what they ask for and takes it down in
order. The launchers call it; protocols and back ends are imported here and nowhere else in the launcher, so that a
process without them does not load them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from millpond.base.errors import ConfigError
from millpond.config.schema import EngineConfig
from millpond.serve.backends.fastertransformer import FasterTransformerBackend
from millpond.serve.backends.in_workers import make_worker_backends
from millpond.serve.backends.llm import NAMES as LLM_NAMES
from millpond.serve.backends.llm import LlmBackend
from millpond.serve.backends.registry_calls import RegistryCalls
from millpond.serve.backends.worker_instance import WorkerSurroundings
from millpond.serve.gateway import Engine
from millpond.serve.kserve.model_metrics import ModelMetrics
from millpond.serve.kserve.restrictions import read_restrictions
from millpond.serve.kserve.server import KServe
from millpond.serve.kserve.settings import TritonSettings
from millpond.serve.kserve.trace_settings import read_levels
from millpond.serve.ports import Port
from millpond.serve.repository.repository import LoadFailure, ModelRepository
from millpond.serve.servables.backend import Backend, ModelFolder
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.limits import ServableLimits
from millpond.serve.servables.registry import Servables
from millpond.serve.workers.wire import MetricUpdate
from millpond.serve.workers.worker import WorkerLimits

_DEFAULT_PORTS = (8000, 8001, 8002)


@dataclass(frozen=True, slots=True)
class HostingPlan:
    """What is asked of a hosting.

    Attributes:
        config: Everything a user said.
        host: Where ports are bound that do not say it.
        has_engine: Whether a language model's own port is open beside it; else Triton's ports have their defaults.
    """

    config: EngineConfig
    host: str
    has_engine: bool


def resolve_triton(plan: HostingPlan) -> TritonSettings:
    """Returns the settings of the Triton ports with every default decided."""
    asked = plan.config.triton
    ports: tuple[int | None, ...] = (asked.http_port, asked.grpc_port, asked.metrics_port)
    mindspore = plan.config.mindspore
    if not plan.has_engine and ports == (None,) * 3 and mindspore.http_port is None and mindspore.grpc_port is None:
        ports = _DEFAULT_PORTS
    defaults = TritonSettings()
    return TritonSettings(
        host=asked.host or plan.host,
        http_port=ports[0],
        grpc_port=ports[1],
        metrics_port=ports[2],
        is_strict=asked.form == "strict",
        server_name=asked.server_name or defaults.server_name,
        is_ready_strict=asked.strict_readiness is not False,
        max_body_bytes=asked.max_body_bytes or defaults.max_body_bytes,
        allow_shared_memory=asked.shared_memory is not False,
        grpc_certificate=asked.grpc_certificate,
        grpc_key=asked.grpc_key,
        grpc_client_ca=asked.grpc_client_ca,
        http_restrictions=read_restrictions(asked.http_restricted, prefix="", param="triton.http_restricted"),
        grpc_restrictions=read_restrictions(
            asked.grpc_restricted, prefix="triton-grpc-protocol-", param="triton.grpc_restricted"
        ),
        trace_file=asked.trace_file or "",
        trace_level=_trace_levels(asked.trace_level),
        trace_rate=defaults.trace_rate if asked.trace_rate is None else asked.trace_rate,
        trace_count=defaults.trace_count if asked.trace_count is None else asked.trace_count,
        log_frequency=asked.trace_log_frequency or 0,
    )


def _trace_levels(text: str | None) -> tuple[str, ...]:
    try:
        return read_levels(text.split(",") if text else ["OFF"])
    except ServableError as error:
        raise ConfigError(
            error.message, fix="Give OFF, TIMESTAMPS, TENSORS or TIMESTAMPS,TENSORS.", param="triton.trace_level"
        ) from None


class Hosting:
    """The servables of one process.

    Args:
        plan: What is asked for.

    Raises:
        ConfigError: A folder is not there, or there would be no way to ask for its models.
    """

    def __init__(self, plan: HostingPlan) -> None:
        self._plan = plan
        self._llm = LlmBackend(plan.config)
        self._calls = RegistryCalls()
        self._published = ModelMetrics()
        self.servables = Servables(self._backends(), _limits(plan.config))
        self.repository = _repository(plan.config, self.servables)
        self._calls.connect(self.servables, self.repository)
        self.server = KServe(self.servables, self.repository, resolve_triton(plan), self._published)
        self.server.is_starting = True
        self.ports = self._make_ports()
        if not self.ports:
            raise ConfigError(
                "A model repository is given, but no port to ask for its models.",
                fix="Add --triton.http_port, or leave out MODEL to get Triton's usual ports.",
                param="triton.http_port",
            )

    async def start(self, engine: Engine | None) -> list[LoadFailure]:
        """Loads the repository's models and makes a running engine a servable; returns what could not be loaded."""
        try:
            failures = [] if self.repository is None else await self.repository.start()
            if engine is not None:
                config = self._llm.share(engine.info.model, engine)
                await self.servables.add(config, ModelFolder(None, 1))
        except ServableError as error:
            raise ConfigError(error.message, fix="Mend it, or leave it out.", param="repository.path") from error
        self.server.is_starting = False
        return failures

    def refuse(self) -> None:
        """Says "not ready" from now on; what comes is still answered."""
        self.server.is_draining = True

    async def close(self) -> None:
        """Takes everything down; the ports are stopped by who opened them."""
        self.refuse()
        if self.repository is not None:
            await self.repository.close()
        await self.servables.close()
        self.server.close()

    def _backends(self) -> Mapping[str, Backend]:
        surroundings = WorkerSurroundings(_worker_limits(self._plan.config), self._calls, self._on_metric)
        fastertransformer = FasterTransformerBackend(self._plan.config)
        own: dict[str, Backend] = {**dict.fromkeys(LLM_NAMES, self._llm), fastertransformer.name: fastertransformer}
        return {**make_worker_backends(surroundings), **own}

    def _on_metric(self, model: str, source: int, update: MetricUpdate) -> None:
        self._published.publish(
            update.family, update.kind, update.description, source=source, labels=update.labels, value=update.value
        )

    def _make_ports(self) -> list[Port]:
        from millpond.serve.kserve.ports import make_ports

        ports = make_ports(self.server)
        mindspore = self._plan.config.mindspore
        if mindspore.http_port is not None or mindspore.grpc_port is not None:
            from millpond.serve.mindspore.ports import make_ports as make_mindspore_ports

            ports += make_mindspore_ports(mindspore, self.servables, self._plan.host)
        return ports


def _worker_limits(config: EngineConfig) -> WorkerLimits:
    asked, defaults = config.repository, WorkerLimits()
    load_s, silence_s = asked.load_timeout_s, asked.silence_timeout_s
    return WorkerLimits(
        load_timeout_s=defaults.load_timeout_s if load_s is None else load_s,
        silence_timeout_s=defaults.silence_timeout_s if silence_s is None else silence_s,
    )


def _limits(config: EngineConfig) -> ServableLimits:
    return ServableLimits(cache_bytes=config.repository.cache_bytes or 0, rate_limit=bool(config.repository.rate_limit))


def _repository(config: EngineConfig, servables: Servables) -> ModelRepository | None:
    asked = config.repository
    if asked.path is None:
        return None
    paths = [Path(path) for path in asked.path.split(os.pathsep) if path]
    for path in paths:
        if not path.is_dir():
            raise ConfigError(
                f"The model repository '{path}' is not a folder.",
                fix="Give the folder that holds a folder for each model.",
                param="repository.path",
            )
    return ModelRepository(
        paths,
        servables,
        mode=asked.mode or "none",
        startup=[name for name in (asked.load or "").split(",") if name],
        poll_s=asked.poll_s or 15.0,
        config_name=asked.config_name or "",
        may_guess=asked.auto_complete is not False,
    )
