"""The original's examples as their users run them: a script, a servable's file, clients; workers are real processes."""

from __future__ import annotations

import io
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from millpond.compat.mindspore_serving.client import Client
from tests.support.mindspore_scripts import (
    ADD_CONFIG,
    LENET_BATCH,
    SERVER,
    Script,
    free_address,
    write_examples,
    write_servable,
)

UNCHANGED = "from mindspore_serving import server"
CHANGED = "from millpond.compat.mindspore_serving import server"
RUN = ("-m", "millpond.compat.mindspore_serving")


@dataclass
class Served:
    """The examples, running."""

    grpc: str
    rest: str
    weights: dict[str, Any]
    script: Script


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("examples")
    weights = write_examples(folder)
    (folder / "serving_server.py").write_text(SERVER.format(imports=UNCHANGED))
    grpc, rest = free_address(), free_address()
    script = Script([*RUN, "serving_server.py", grpc, rest, "add", "add_sub", "matmul", "lenet"], folder)
    try:
        script.wait_for(f"Serving: Serving RESTful server start success, listening on {rest}")
        yield Served(grpc, rest, weights, script)
    finally:
        assert script.end() == 0


def infer(served: Served, name: str, method: str, instances: Any) -> Any:
    with Client(served.grpc, name, method) as client:
        return client.infer(instances)


def post(served: Served, name: str, method: str, instances: Any) -> Any:
    reply = requests.post(f"http://{served.rest}/model/{name}:{method}", json={"instances": instances}, timeout=30)
    assert reply.status_code == 200
    return reply.json()


def test_the_start_up_lines_are_the_originals(served: Served) -> None:
    assert f"Serving: Serving gRPC server start success, listening on {served.grpc}" in served.script.lines
    started = [line for line in served.script.lines if "Serving: Start servable success, servable directory: '" in line]
    assert any("servable name: 'add_sub', version number: 1" in line for line in started)


def test_tensor_add(served: Served) -> None:
    instances = [{"x1": np.full((2, 2), i, np.float32), "x2": np.ones((2, 2), np.float32)} for i in range(20)]
    results = infer(served, "add", "add_common", instances)
    assert [result["y"].tolist() for result in results] == [[[i + 1.0] * 2] * 2 for i in range(20)]
    ints = {"x1": np.ones((2, 2), np.int32), "x2": np.ones((2, 2), np.int32)}
    assert infer(served, "add", "add_cast", ints)[0]["y"].tolist() == [[2.0, 2.0]] * 2
    rest = post(served, "add", "add_common", {"x1": [[1.1, 2.2], [3.3, 4.4]], "x2": [[5.5, 6.6], [7.7, 8.8]]})
    np.testing.assert_allclose(rest["instances"][0]["y"], [[6.6, 8.8], [11.0, 13.2]], rtol=1e-6)


def test_instances_that_do_not_fit_the_model_fail_alone(served: Served) -> None:
    good = np.ones((2, 2), np.float32)
    results = infer(served, "add", "add_common", [{"x1": good, "x2": good.astype(np.int32)}, {"x1": good, "x2": good}])
    assert results[0] == {
        "error": "Given model input 1 data type kMSI_Int32 not match the data type kMSI_Float32 defined in model"
    }
    assert results[1]["y"].tolist() == [[2.0, 2.0]] * 2


@pytest.mark.parametrize(("method", "extra"), [("add_sub_only_model", 0), ("add_sub_complex", 2)])
def test_add_sub_pipeline(served: Served, method: str, extra: int) -> None:
    rng = np.random.default_rng(1)
    arrays = rng.integers(-9, 9, (7, 3, 2, 2)).astype(np.float32)
    instances = [{"x1": one[0], "x2": one[1], "x3": one[2]} for one in arrays]
    results = infer(served, "add_sub", method, instances)
    for one, result in zip(arrays, results, strict=True):
        np.testing.assert_array_equal(result["y"], one[0] + one[1] - one[2] + extra)


def test_matmul_of_several_subgraphs(served: Served) -> None:
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(128, 96)).astype(np.float32), rng.normal(size=(8, 96)).astype(np.float32)
    (result,) = infer(served, "matmul", "predict", {"x": x, "y": y})
    expected = (x @ served.weights["matmul_0"]).sum(0) + (y @ served.weights["matmul_1"]).sum(0)
    np.testing.assert_allclose(result["z"], expected, rtol=1e-3, atol=1e-3)
    failed = infer(served, "matmul", "predict", {"x": y, "y": y})
    assert failed["error"].startswith("Call Function 'matmul.process' Failed, Model(matmul_0.mindir;matmul_1.mindir)")
    assert "Given model input 0 size 3072 not match the size 49152 defined in model" in failed["error"]


def test_lenet_is_batched_to_its_fixed_batch(served: Served) -> None:
    rng = np.random.default_rng(5)
    names = ["zero", "one", "two", "three"]
    for count in (1, LENET_BATCH, 2 * LENET_BATCH + 1):
        pixels = rng.integers(0, 256, (count, 32, 32)).astype(np.uint8)
        images = []
        for image in pixels:
            with io.BytesIO() as file:
                np.save(file, image)
                images.append(file.getvalue())
        scores = pixels.reshape(count, -1).astype(np.float32) / 255 @ served.weights["lenet"]
        labels = [names[index] for index in scores.argmax(1)]
        results = infer(served, "lenet", "classify_top1", [{"image": image} for image in images])
        assert [result["label"] for result in results] == labels
        results = infer(served, "lenet", "classify_top2", [{"image": image} for image in images])
        assert [result["label"].split(";")[0] for result in results] == labels
        np.testing.assert_allclose([result["score"][0] for result in results], scores.max(1), rtol=1e-3, atol=1e-3)


def test_an_image_that_is_none_fails_alone(served: Served) -> None:
    with io.BytesIO() as file:
        np.save(file, np.zeros((32, 32), np.uint8))
        good = file.getvalue()
    results = infer(served, "lenet", "classify_top1", [{"image": good}, {"image": b"no image"}, {"image": good}])
    assert [sorted(result) for result in results] == [["label"], ["error"], ["label"]]
    assert results[1]["error"].startswith("Call Function 'lenet.preprocess_pipeline' Failed")


SIMPLE = """
import os
from millpond.compat.mindspore_serving.server import register


def mark(x):
    if x == "die":
        os._exit(9)
    return x + str(os.getpid())


@register.register_method(output_names=["y"])
def run(x):
    return register.add_stage(mark, x, outputs_count=1)
"""


def start(folder: Path, *names: str) -> tuple[Script, str, str]:
    (folder / "serving_server.py").write_text(SERVER.format(imports=CHANGED))
    grpc, rest = free_address(), free_address()
    return Script(["serving_server.py", grpc, rest, *names], folder), grpc, rest


def test_with_the_import_line_changed_it_is_a_plain_script_that_ctrl_c_stops(tmp_path: Path) -> None:
    write_servable(tmp_path, "simple", SIMPLE)
    script, grpc, rest = start(tmp_path, "simple")
    try:
        script.wait_for(f"Serving: Serving RESTful server start success, listening on {rest}")
        with Client(grpc, "simple", "run") as client:
            results = client.infer([{"x": f"{index}-"} for index in range(40)])
            assert [result["y"].split("-")[0] for result in results] == [str(index) for index in range(40)]
            workers = {result["y"].split("-")[1] for result in results}
            assert len(workers) == 2
            assert str(script.process.pid) not in workers
            failed = client.infer([{"x": "die"}, {"x": "a-"}])
            assert "exited with status 9" in failed[0]["error"]
            assert failed[1]["y"].startswith("a-")
    finally:
        assert script.end(signal.SIGINT) == 0


def test_a_mindir_alone_stops_the_script_and_says_how_to_export(tmp_path: Path) -> None:
    servable = write_servable(tmp_path, "add", ADD_CONFIG.replace("from mindspore", "from millpond.compat.mindspore"))
    (servable / "1").mkdir()
    (servable / "1" / "tensor_add.mindir").write_bytes(b"x")
    script, _, _ = start(tmp_path, "add")
    assert script.end(None) == 1
    error = script.lines[-1]
    assert error.startswith("RuntimeError: Fail to start workers: Load model failed, servable directory: '")
    assert "mindspore.export(net, *inputs, file_name='tensor_add', file_format='ONNX')" in error
