"""Addresses of the servers, and what they prove themselves with. Raises `RuntimeError` with the original's texts."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import NamedTuple

from millpond.compat.mindspore_serving.server.checks import check_bool, check_str

UNIX = "unix:"


class SSLConfig:
    """A server's certificate.

    Args:
        certificate: A file with its certificates, PEM.
        private_key: A file with its key, PEM.
        custom_ca: A file with the authorities of clients' certificates.
        verify_client: Whether clients must have a certificate.

    Raises:
        RuntimeError: An argument is wrong.
    """

    def __init__(
        self, certificate: str, private_key: str, custom_ca: str | None = None, verify_client: bool = False
    ) -> None:
        self.certificate = check_str("certificate", certificate)
        self.private_key = check_str("private_key", private_key)
        self.custom_ca = None if custom_ca is None else check_str("custom_ca", custom_ca)
        self.verify_client = check_bool("verify_client", verify_client)


class Address(NamedTuple):
    """Where a server listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def parse_address(address: str, server: str) -> Address:
    """Reads "host:port".

    Args:
        address: As it was given.
        server: How messages call the server: "Serving gRPC server".

    Raises:
        RuntimeError: It is none.
    """
    illegal = f"Serving Error: The format of the {server} address '{address}' is illegal"
    host, colon, digits = address.rpartition(":")
    if not colon or not host or not digits:
        raise RuntimeError(f"{illegal}, Missing ip or port")
    if not (digits.isascii() and digits.lstrip("-").isdecimal()):
        raise RuntimeError(f"{illegal}, port is not a number")
    port = int(digits[:9])
    if not 1 <= port <= 65535:
        raise RuntimeError(f"{illegal}, port {digits} out of legal range [1 ~ 65535]")
    return Address(host.strip("[]"), port)


def read_file(path: str, what: str) -> bytes:
    """Returns a file's content; raises `RuntimeError` when it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise RuntimeError(f"Serving Error: load {what} from {path} failed: {error.strerror}") from None


def make_context(config: SSLConfig) -> ssl.SSLContext:
    """Returns the TLS settings of a REST server.

    Raises:
        RuntimeError: A file cannot be read or does not fit.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    read_file(config.certificate, "certificate_chain")
    read_file(config.private_key, "private_key")
    try:
        context.load_cert_chain(config.certificate, config.private_key)
        if config.verify_client:
            context.verify_mode = ssl.CERT_REQUIRED
            if config.custom_ca is None:
                context.load_default_certs(ssl.Purpose.CLIENT_AUTH)
            else:
                context.load_verify_locations(config.custom_ca)
    except (ssl.SSLError, OSError) as error:
        raise RuntimeError(
            f"Serving Error: private_key is not consistent with certificate {config.certificate}: {error}"
        ) from None
    return context
