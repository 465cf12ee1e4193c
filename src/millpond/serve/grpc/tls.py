"""`GrpcTls` and `bind`: a gRPC server's address in the clear or with TLS, for every service we have.

Owns how certificates are read and checked before a server starts; knows no protocol.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from millpond.base.errors import ConfigError

if TYPE_CHECKING:
    import grpc.aio


@dataclass(frozen=True, slots=True)
class GrpcTls:
    """What a port proves itself with, PEM: its certificates and key, and whose clients it accepts."""

    certificate: bytes
    private_key: bytes = field(repr=False)
    client_ca: bytes | None = None
    verifies_client: bool = False


def read_tls(certificate: str, key: str, client_ca: str | None, *, param: str) -> GrpcTls:
    """Reads PEM files; clients need a certificate when an authority for them is given.

    Raises:
        ConfigError: A file cannot be read or holds something else; `param` is the setting.
    """
    return GrpcTls(
        _pem(certificate, b"CERTIFICATE", param),
        _pem(key, b"PRIVATE KEY", param),
        None if client_ca is None else _pem(client_ca, b"CERTIFICATE", param),
        client_ca is not None,
    )


def bind(server: grpc.aio.Server, address: str, tls: GrpcTls | None) -> int:
    """Binds a server and returns the port that was taken, 0 when the address cannot be had."""
    try:
        if tls is None:
            return server.add_insecure_port(address)
        credentials = grpc.ssl_server_credentials(
            [(tls.private_key, tls.certificate)],
            root_certificates=tls.client_ca if tls.verifies_client else None,
            require_client_auth=tls.verifies_client,
        )
        return server.add_secure_port(address, credentials)
    except RuntimeError:
        return 0


def _pem(path: str, kind: bytes, param: str) -> bytes:
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"The file {path} cannot be read: {error.strerror}.", fix="Give a PEM file.", param=param
        ) from None
    if kind + b"-----" not in content:
        raise ConfigError(
            f"The file {path} holds no {kind.decode().lower()}.", fix="Give a PEM file that has one.", param=param
        )
    return content
