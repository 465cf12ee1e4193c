"""`ServeSettings`: the server's settings with every default decided.

The HTTP counterpart of `ResolvedConfig`; it stands here and not in config/resolve.py because the gateway must start
without the engine's libraries. `resolve_serve` is the only place where a default of the server is decided.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TypeVar

from millpond.base.errors import ConfigError
from millpond.config.schema import EngineConfig, ServeConfig
from millpond.serve.keys import ApiKeys, load_keys

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """How one server behaves. Times in seconds, sizes in bytes.

    Attributes:
        max_open_requests: Generation requests answered at a time, waiting ones included; bounds the memory of bodies.
        body_timeout_s: Longest time a client may take to send its body.
        send_timeout_s: Longest time a client may leave a stream unread before it is cut off.
        first_event_s: A stream's headers are sent after this long even if no token has come.
        heartbeat_s: A comment is sent on a stream that was silent for this long.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    keys: ApiKeys | None = None
    request_timeout_s: float = 600.0
    drain_timeout_s: float = 30.0
    max_body_bytes: int = 4 << 20
    max_open_requests: int = 1024
    body_timeout_s: float = 30.0
    send_timeout_s: float = 30.0
    first_event_s: float = 10.0
    heartbeat_s: float = 15.0

    @property
    def is_loopback(self) -> bool:
        """True when only this machine can connect."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def resolve_serve(config: ServeConfig) -> ServeSettings:
    """Returns the settings for what was asked for.

    Raises:
        ConfigError: A value makes no sense, or the key file cannot be used.
    """
    defaults = ServeSettings()
    settings = ServeSettings(
        host=_chosen(config.host, defaults.host),
        port=_chosen(config.port, defaults.port),
        keys=None if config.api_key_file is None else load_keys(config.api_key_file),
        request_timeout_s=_chosen(config.request_timeout_s, defaults.request_timeout_s),
        drain_timeout_s=_chosen(config.drain_timeout_s, defaults.drain_timeout_s),
        max_body_bytes=_chosen(config.max_body_bytes, defaults.max_body_bytes),
    )
    _check(settings)
    return settings


def needs_servables(config: EngineConfig) -> bool:
    """Whether the settings name a repository, or a port of a protocol that serves models of any kind."""
    triton, mindspore = config.triton, config.mindspore
    ports = (triton.http_port, triton.grpc_port, triton.metrics_port, mindspore.http_port, mindspore.grpc_port)
    return config.repository.path is not None or any(port is not None for port in ports)


def _chosen(asked: T | None, default: T) -> T:
    return default if asked is None else asked


def _check(settings: ServeSettings) -> None:
    if not 0 <= settings.port <= 65535:
        raise ConfigError(f"Port {settings.port} does not exist.", fix="Give one of 0 to 65535.", param="serve.port")
    for name in ("request_timeout_s", "drain_timeout_s", "max_body_bytes"):
        value = getattr(settings, name)
        if not value > 0:
            raise ConfigError(f"serve.{name} is {value}.", fix="Give a number above 0.", param=f"serve.{name}")
