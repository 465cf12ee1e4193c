"""Who may ask what: gRPC with TLS, one-sided and mutual, and parts of the protocol behind a header."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from millpond.base.errors import ConfigError
from millpond.serve.kserve.restrictions import read_restrictions
from millpond.serve.kserve.settings import TritonSettings
from tests.support.triton_server import GOLDEN, TritonServer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import tritonclient.grpc as grpc_client
    import tritonclient.http as http_client
    from tritonclient.utils import InferenceServerException

KEYS = Path(__file__).parents[2] / "support" / "certificates"
KEY = {"admin-key": "sesame"}
METADATA = {"triton-grpc-protocol-admin-key": "sesame"}


def serve(**settings: Any) -> TritonServer:
    return TritonServer(GOLDEN / "models", ("simple",), TritonSettings(**settings))


def infer(client: Any, module: Any, **options: Any) -> list[int]:
    items = []
    for name in ("INPUT0", "INPUT1"):
        item = module.InferInput(name, [1, 16], "INT32")
        item.set_data_from_numpy(np.ones((1, 16), dtype=np.int32))
        items.append(item)
    return list(client.infer("simple", items, **options).as_numpy("OUTPUT0")[0])


def secure(server: TritonServer, **files: str) -> Any:
    given = {name: str(KEYS / file) for name, file in {"root_certificates": "ca.crt", **files}.items()}
    return grpc_client.InferenceServerClient(
        server.grpc, ssl=True, channel_args=[("grpc.ssl_target_name_override", "localhost")], **given
    )


def test_grpc_is_served_with_tls() -> None:
    server = serve(grpc_certificate=str(KEYS / "server.crt"), grpc_key=str(KEYS / "server.key"))
    try:
        with secure(server) as client:
            assert infer(client, grpc_client) == [2] * 16
        with (
            grpc_client.InferenceServerClient(server.grpc) as plain,
            pytest.raises(InferenceServerException, match="UNAVAILABLE"),
        ):
            plain.is_server_live()
    finally:
        server.close()


def test_mutual_tls_asks_clients_for_a_certificate() -> None:
    server = serve(
        grpc_certificate=str(KEYS / "server.crt"),
        grpc_key=str(KEYS / "server.key"),
        grpc_client_ca=str(KEYS / "ca.crt"),
    )
    try:
        with secure(server, private_key="client.key", certificate_chain="client.crt") as client:
            assert infer(client, grpc_client) == [2] * 16
        with secure(server) as stranger, pytest.raises(InferenceServerException, match="UNAVAILABLE"):
            stranger.is_server_live()
    finally:
        server.close()


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"grpc_certificate": "server.crt"}, "needs a certificate and its key"),
        ({"grpc_client_ca": "ca.crt"}, "needs a certificate and its key"),
        ({"grpc_certificate": "nowhere.crt", "grpc_key": "server.key"}, "cannot be read"),
        ({"grpc_certificate": "server.key", "grpc_key": "server.key"}, "holds no certificate"),
        ({"grpc_certificate": "server.crt", "grpc_key": "server.crt"}, "holds no private key"),
    ],
)
def test_files_that_make_no_sense_are_named(files: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        serve(**{name: str(KEYS / file) for name, file in files.items()})


@pytest.fixture(scope="module")
def locked() -> Any:
    server = serve(
        http_restrictions=read_restrictions("statistics,model-config:Admin-Key=sesame", prefix="", param=""),
        grpc_restrictions=read_restrictions(
            "inference,health:admin-key=sesame;model-repository:Other-Key=x",
            prefix="triton-grpc-protocol-",
            param="",
        ),
    )
    yield server
    server.close()


@pytest.mark.parametrize("given", [{}, {"admin-key": "wrong"}, {"other": "sesame"}, {"admin-key": "sesam\u00e9"}])
def test_http_is_forbidden_without_the_header(locked: TritonServer, given: dict[str, str]) -> None:
    with http_client.InferenceServerClient(locked.http) as client:
        for ask in (client.get_model_config, client.get_inference_statistics):
            with pytest.raises(InferenceServerException, match="API is restricted, expecting header 'Admin-Key'") as e:
                ask("simple", headers=given)
            assert e.value.status() == "403"
            ask("simple", headers=KEY)
        assert infer(client, http_client) == [2] * 16
        assert client.get_model_metadata("simple")["name"] == "simple"


def test_grpc_is_restricted_without_the_metadata(locked: TritonServer) -> None:
    words = "This protocol is restricted, expecting header 'triton-grpc-protocol-admin-key'"
    with grpc_client.InferenceServerClient(locked.grpc) as client:
        refused: list[Callable[..., Any]] = [
            client.is_server_live,
            client.is_server_ready,
            lambda **options: client.is_model_ready("simple", **options),
            lambda **options: infer(client, grpc_client, **options),
        ]
        for ask in refused:
            for given in ({}, {"triton-grpc-protocol-admin-key": "x"}, KEY):
                with pytest.raises(InferenceServerException, match=words) as caught:
                    ask(headers=given)
                assert caught.value.status() == "StatusCode.UNAVAILABLE"
            ask(headers=METADATA)
        with pytest.raises(InferenceServerException, match="expecting header 'triton-grpc-protocol-Other-Key'"):
            client.get_model_repository_index(headers=METADATA)
        assert client.get_model_repository_index(headers={"triton-grpc-protocol-other-key": "x"}).models
        assert client.get_model_metadata("simple").name == "simple"


def test_a_stream_and_the_health_service_are_restricted_too(locked: TritonServer) -> None:
    with grpc.insecure_channel(locked.grpc) as channel:
        calls = (
            channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer"),
            channel.unary_stream("/grpc.health.v1.Health/Watch"),
        )
        for call, request in zip(calls, (iter([b""]), b""), strict=True):
            with pytest.raises(grpc.RpcError) as caught:
                list(call(request, timeout=30))
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        with pytest.raises(grpc.RpcError):
            check(b"", timeout=30)
        assert check(b"", timeout=30, metadata=tuple(METADATA.items())) == b"\x08\x01"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("health", "is not CATEGORY"),
        ("health:key", "is not CATEGORY"),
        ("health:=x", "is not CATEGORY"),
        ("everything:k=v", "'everything' is no part"),
        ("health,metadata:k=v;health:k=w", "'health' can not be specified in multiple config groups"),
    ],
)
def test_restrictions_that_make_no_sense_are_refused_and_tell_no_secret(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        read_restrictions(text, prefix="", param="triton.http_restricted")
    assert "=v" not in str(caught.value)
