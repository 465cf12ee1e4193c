"""`TritonSettings`: how the ports that speak the Open Inference Protocol behave, with every default decided."""

from __future__ import annotations

from dataclasses import dataclass, field

from millpond.serve.kserve.restrictions import Restrictions

EXTENSIONS = (
    "classification",
    "sequence",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "model_configuration",
    "system_shared_memory",
    "cuda_shared_memory",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "trace",
    "logging",
)
PROTOCOL_VERSION = "2.51.0"  # the release whose answers ours equal


@dataclass(frozen=True, slots=True)
class TritonSettings:
    """One server.

    Attributes:
        host: Address of all three ports.
        http_port, grpc_port, metrics_port: 0 picks a free one; None leaves the port closed.
        is_strict: Proper status codes for what a client did wrong, and no silent truncation; else as Triton does it.
        server_name: What the server calls itself.
        server_version: Of the server it is compatible with.
        is_ready_strict: Whether "ready" asks for all models that were to be loaded.
        max_body_bytes: Of a request over HTTP, and of a message over gRPC.
        allow_shared_memory: Whether clients may register their shared memory.
        trace_file: Where traces go; "" is nowhere. Only the command line can set it.
        trace_level: "OFF", or "TIMESTAMPS" and "TENSORS".
        trace_rate: One request of so many is traced.
        trace_count: So many traces, then none; -1 is no end.
        log_frequency: A new file after so many traces; 0 is one file.
        grpc_certificate, grpc_key: PEM files; gRPC is served with TLS when they are given.
        grpc_client_ca: PEM file; clients over gRPC need a certificate of this authority.
        http_restrictions, grpc_restrictions: What asks for a header with a secret.
    """

    host: str = "127.0.0.1"
    http_port: int | None = None
    grpc_port: int | None = None
    metrics_port: int | None = None
    is_strict: bool = False
    server_name: str = "triton"
    server_version: str = PROTOCOL_VERSION
    is_ready_strict: bool = True
    max_body_bytes: int = 256 << 20
    allow_shared_memory: bool = True
    trace_file: str = ""
    trace_level: tuple[str, ...] = ("OFF",)
    trace_rate: int = 1000
    trace_count: int = -1
    log_frequency: int = 0
    grpc_certificate: str | None = None
    grpc_key: str | None = None
    grpc_client_ca: str | None = None
    http_restrictions: Restrictions = field(default_factory=dict)
    grpc_restrictions: Restrictions = field(default_factory=dict)
