"""The server's functions in one process: start, stop, start again, TLS, limits, and what they refuse."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from millpond.compat.mindspore_serving import server
from millpond.compat.mindspore_serving.client import Client, SSLConfig
from tests.support.mindspore_scripts import ADD_CONFIG, free_address, write_onnx, write_servable

CERTIFICATES = Path(__file__).parents[2] / "support" / "certificates"
CONFIG = """
from mindspore_serving.server import register


def double(x):
    return x * 2


@register.register_method(output_names=["y"])
def run(x):
    return register.add_stage(double, x, outputs_count=1)
"""


@pytest.fixture(autouse=True)
def stopped() -> Iterator[None]:
    try:
        yield
    finally:
        server.stop()
        server.master.context.set_max_enqueued_requests(10000)
    assert not [thread for thread in threading.enumerate() if thread.name == "mindspore-serving"]


@pytest.fixture
def config(tmp_path: Path) -> server.ServableStartConfig:
    write_servable(tmp_path, "simple", CONFIG)
    return server.ServableStartConfig(str(tmp_path), "simple")


def infer(address: str, tls: SSLConfig | None = None) -> Any:
    with Client(address, "simple", "run", ssl_config=tls) as client:
        return client.infer({"x": "ab"})


def post(address: str, scheme: str = "http", **options: Any) -> Any:
    url = f"{scheme}://{address.replace('127.0.0.1', 'localhost')}/model/simple:run"
    return requests.post(url, json={"instances": {"x": 4}}, timeout=20, **options).json()


def test_servables_can_be_stopped_and_started_again(config: server.ServableStartConfig) -> None:
    for _ in range(2):
        grpc, rest = free_address(), free_address()
        server.start_servables(config)
        server.start_grpc_server(grpc)
        server.start_restful_server(rest)
        assert infer(grpc) == [{"y": "abab"}]
        assert post(rest) == {"instances": [{"y": 8}]}
        server.stop()
        assert infer(grpc)["error"].startswith("Grpc Error, (14, 'unavailable')")
        with pytest.raises(requests.ConnectionError):
            post(rest)


def test_servers_may_start_before_the_servables(config: server.ServableStartConfig, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/serving.sock"
    server.start_grpc_server(address)
    assert infer(address) == {"error": "Request servable(simple) method(run) , servable is not available"}
    server.start_servables([config])
    assert infer(address) == [{"y": "abab"}]


def test_tls_is_spoken_and_clients_may_have_to_prove_themselves(config: server.ServableStartConfig) -> None:
    server.start_servables(config)
    files = {name: str(CERTIFICATES / name) for name in ("ca.crt", "server.crt", "server.key", "client.crt")}
    tls = server.SSLConfig(files["server.crt"], files["server.key"], files["ca.crt"], True)
    grpc, rest = free_address(), free_address()
    server.start_grpc_server(grpc, ssl_config=tls)
    server.start_restful_server(rest, ssl_config=tls)
    key = str(CERTIFICATES / "client.key")
    known = SSLConfig(files["client.crt"], key, files["ca.crt"])
    assert infer(grpc, known) == [{"y": "abab"}]
    assert "error" in infer(grpc, SSLConfig(custom_ca=files["ca.crt"]))
    assert post(rest, "https", verify=files["ca.crt"], cert=(files["client.crt"], key)) == {"instances": [{"y": 8}]}
    with pytest.raises((requests.ConnectionError, requests.exceptions.SSLError)):
        post(rest, "https", verify=files["ca.crt"])
    with pytest.raises(RuntimeError, match="should be passed at the same time"):
        Client(grpc, "simple", "run", ssl_config=SSLConfig(certificate=files["client.crt"]))


def test_a_server_of_a_kind_runs_once() -> None:
    server.start_grpc_server(free_address())
    with pytest.raises(RuntimeError, match="Serving Error: Serving gRPC server is already running"):
        server.start_grpc_server(free_address())
    server.start_restful_server(free_address())
    with pytest.raises(RuntimeError, match="Serving Error: Serving RESTful server is already running"):
        server.start_restful_server(free_address())


def test_an_address_that_is_taken_is_named_and_all_is_stopped() -> None:
    rest = free_address()
    server.start_restful_server(rest)
    with pytest.raises(RuntimeError, match=f"server start failed, create server failed, address {rest}"):
        server.start_grpc_server(rest)
    with pytest.raises(requests.ConnectionError):
        post(rest)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: server.start_servables(1), "should be ServableStartConfig, list or tuple of ServableStartConfig"),
        (lambda: server.start_servables([1]), "The item of parameter .* should be ServableStartConfig, but actually"),
        (lambda: server.start_grpc_server(1), "Parameter 'address' should be str"),
        (lambda: server.start_grpc_server("127.0.0.1:1", 513), r"'max_msg_mb_size' should be in range \[1,512\]"),
        (lambda: server.start_grpc_server("127.0.0.1:1", ssl_config=1), "'ssl_config' should be SSLConfig"),
        (lambda: server.start_grpc_server("127.0.0.1"), "Serving gRPC server address '127.0.0.1' is illegal"),
        (lambda: server.start_restful_server("127.0.0.1:99999"), r"99999 out of legal range \[1 ~ 65535\]"),
        (lambda: server.start_restful_server("unix:/x"), "RESTful server does not support binding to unix domain"),
        (lambda: server.master.context.set_max_enqueued_requests(0), "'max_enqueued_requests' should be >= 1"),
    ],
)
def test_wrong_arguments_are_named(call: Any, text: str) -> None:
    with pytest.raises(RuntimeError, match=text):
        call()


def test_the_limit_of_requests_counts_at_once(config: server.ServableStartConfig) -> None:
    server.start_servables(config)
    rest = free_address()
    server.start_restful_server(rest)
    server.master.context.set_max_enqueued_requests(1)
    assert post(rest) == {"instances": [{"y": 8}]}
    assert server.master.context.get_max_enqueued_requests() == 1


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ("import nothing_of_this_name\n", "Load servable config failed, file 'servable_config.py' of servable 'bad'"),
        ("", "There is no method registered for servable"),
        (ADD_CONFIG.replace("x1, x2, outputs_count=1", "x1, outputs_count=1"), "The inputs count 1 in register_method"),
        ("import os\nos._exit(4)\n", "exited with status 4"),
    ],
)
def test_a_servable_that_cannot_be_loaded_is_named_and_all_is_stopped(tmp_path: Path, config: str, text: str) -> None:
    servable = write_servable(tmp_path, "bad", config)
    write_onnx(servable / "1" / "tensor_add.onnx", "Add", [(2, 2)] * 2, (2, 2))
    write_servable(tmp_path, "simple", CONFIG)
    grpc = free_address()
    server.start_grpc_server(grpc)
    configs = [server.ServableStartConfig(str(tmp_path), name) for name in ("simple", "bad")]
    with pytest.raises(RuntimeError, match=text):
        server.start_servables(configs)
    assert infer(grpc)["error"].startswith("Grpc Error, (14, 'unavailable')")


def test_several_versions_answer_side_by_side(tmp_path: Path) -> None:
    servable = write_servable(tmp_path, "simple", CONFIG)
    for version in ("1", "2", "5"):
        (servable / version).mkdir()
    server.start_servables(
        [server.ServableStartConfig(str(tmp_path), "simple", version_number=version) for version in (0, 2)]
    )
    grpc = free_address()
    server.start_grpc_server(grpc)
    for version, known in ((0, True), (5, True), (2, True), (1, False)):
        with Client(grpc, "simple", "run", version) as client:
            assert isinstance(client.infer({"x": "a"}), list) == known


def test_encrypted_models_are_refused_with_a_reason(tmp_path: Path) -> None:
    write_servable(tmp_path, "simple", CONFIG)
    config = server.ServableStartConfig(str(tmp_path), "simple", dec_key=b"0" * 16)
    with pytest.raises(RuntimeError, match="Encrypted model files are not supported"):
        server.start_servables(config)


TABLE = '{"version": "1.0", "server_list": [{"server_id": "a", "device": [%s]}]}'
DEVICE = '{"device_id": "%d", "device_ip": "10.0.0.1", "rank_id": "%d"}'


def test_a_table_of_one_rank_is_a_servable_like_any_other(tmp_path: Path) -> None:
    write_servable(tmp_path, "simple", CONFIG)
    (tmp_path / "table.json").write_text(TABLE % (DEVICE % (0, 0)))
    server.distributed.start_servable(str(tmp_path), "simple", str(tmp_path / "table.json"))
    grpc = free_address()
    server.start_grpc_server(grpc)
    assert infer(grpc) == [{"y": "abab"}]


@pytest.mark.parametrize(
    ("table", "text"),
    [
        (TABLE % ", ".join(DEVICE % (index, index) for index in range(8)), "distributed over 8 ranks .* `millpond"),
        (TABLE % (DEVICE % (0, 1)), "the rank ids are not 0 to n, each once"),
        ('{"server_list": 1}', "'server_list' is missing or is no list"),
        (TABLE % '{"rank_id": 0}', "'rank_id' is missing or is no str"),
        ("{", "is no JSON"),
    ],
)
def test_what_ranks_cannot_do_here_is_said(tmp_path: Path, table: str, text: str) -> None:
    write_servable(tmp_path, "simple", CONFIG)
    (tmp_path / "table.json").write_text(table)
    with pytest.raises(RuntimeError, match=text):
        server.distributed.start_servable(str(tmp_path), "simple", str(tmp_path / "table.json"))
    with pytest.raises(RuntimeError, match="which only MindSpore can run"):
        server.distributed.startup_agents("127.0.0.1:6200", ["a.mindir"])
