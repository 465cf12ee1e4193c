"""What a client that classifies images does: reads the model's description, prepares images, asks for the top classes.

The steps are those of Triton's public image client, on `tritonclient` as it is published, over HTTP and gRPC, one by
one, at the same time and over a stream. The model is an ONNX network made here; numpy says what is expected.
"""

from __future__ import annotations

import queue
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tests.support.triton_server import TritonServer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import tritonclient.grpc as grpc_client
    import tritonclient.http as http_client

Image = NDArray[np.float32]
SIZE, CLASSES, BATCH = 16, 10, 4
LABELS = [f"thing {number}" for number in range(CLASSES)]
CONFIG = """
name: "classifier" backend: "onnxruntime" max_batch_size: 8
input { name: "image" data_type: TYPE_FP32 format: FORMAT_NCHW dims: [ 3, 16, 16 ] }
output { name: "scores" data_type: TYPE_FP32 dims: [ 10 ] label_filename: "labels.txt" }
dynamic_batching { }
"""
chance = np.random.default_rng(3)
KERNELS = chance.standard_normal((6, 3, 3, 3), dtype=np.float32)
WEIGHTS = chance.standard_normal((6, CLASSES), dtype=np.float32)
PICTURES = chance.integers(0, 256, (6, 40, 56, 3), dtype=np.uint8)


def write_model(folder: Path) -> None:
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(CONFIG)
    (folder / "labels.txt").write_text("\n".join(LABELS))
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "kernels"], ["edges"], kernel_shape=[3, 3]),
            helper.make_node("Relu", ["edges"], ["lit"]),
            helper.make_node("GlobalAveragePool", ["lit"], ["mean"]),
            helper.make_node("Flatten", ["mean"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], ["scores"]),
        ],
        "classifier",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", CLASSES])],
        [numpy_helper.from_array(KERNELS, "kernels"), numpy_helper.from_array(WEIGHTS, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(folder / "1" / "model.onnx"))


def expected_scores(images: Image) -> Image:
    patches = np.lib.stride_tricks.sliding_window_view(images, (3, 3), axis=(2, 3))
    edges = np.maximum(np.einsum("nchwij,kcij->nkhw", patches, KERNELS), 0)
    scores: Image = edges.mean((2, 3)) @ WEIGHTS
    return scores


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    models = tmp_path_factory.mktemp("images")
    write_model(models / "classifier")
    server = TritonServer(models, ["classifier"])
    yield server
    server.close()


def described(module: Any, client: Any) -> dict[str, Any]:
    """Reads what an image client wants to know, and refuses what it cannot use."""
    if module is http_client:
        metadata, config = client.get_model_metadata("classifier"), client.get_model_config("classifier")
    else:
        metadata = client.get_model_metadata("classifier", as_json=True)
        config = client.get_model_config("classifier", as_json=True)["config"]
    assert len(metadata["inputs"]) == len(metadata["outputs"]) == 1
    given = metadata["inputs"][0]
    assert [int(dim) for dim in given["shape"]] == [-1, 3, SIZE, SIZE]
    assert metadata["outputs"][0]["datatype"] == "FP32"
    assert [int(dim) for dim in metadata["outputs"][0]["shape"]] == [-1, CLASSES]
    return {
        "input": given["name"],
        "datatype": given["datatype"],
        "output": metadata["outputs"][0]["name"],
        "layout": config["input"][0]["format"],
        "max_batch": int(config["max_batch_size"]),
        "size": tuple(int(dim) for dim in config["input"][0]["dims"][1:]),
    }


def prepared(picture: NDArray[np.uint8], form: dict[str, Any]) -> Image:
    """Scales a picture to the model's size and to -1..1, in its layout."""
    height, width = form["size"]
    rows = np.arange(height) * picture.shape[0] // height
    columns = np.arange(width) * picture.shape[1] // width
    scaled: Image = picture[rows][:, columns].astype(np.float32) / 127.5 - 1
    assert form["layout"] == "FORMAT_NCHW"
    return np.ascontiguousarray(scaled.transpose(2, 0, 1))


def batches(form: dict[str, Any]) -> list[Image]:
    """Cuts the pictures into full batches; the last one is filled up from the beginning, as the image client does."""
    assert form["max_batch"] >= BATCH
    images = [prepared(picture, form) for picture in PICTURES]
    filled = [*images, *images][: -(-len(images) // BATCH) * BATCH]
    return [np.stack(filled[at : at + BATCH]) for at in range(0, len(filled), BATCH)]


def asked(module: Any, form: dict[str, Any], images: Image, *, is_binary: bool = True) -> dict[str, Any]:
    given = module.InferInput(form["input"], list(images.shape), form["datatype"])
    if module is http_client:
        given.set_data_from_numpy(images, binary_data=is_binary)
        wanted = module.InferRequestedOutput(form["output"], binary_data=is_binary, class_count=3)
    else:
        given.set_data_from_numpy(images)
        wanted = module.InferRequestedOutput(form["output"], class_count=3)
    return {"model_name": "classifier", "inputs": [given], "outputs": [wanted]}


def check(classes: NDArray[Any], images: Image) -> None:
    """Compares "value:index:label" of the top three with numpy's."""
    scores = expected_scores(images)
    assert classes.shape == (BATCH, 3)
    for row, found in zip(scores, classes, strict=True):
        best = np.argsort(-row)[:3]
        for index, item in zip(best, found, strict=True):
            value, number, label = (item.decode() if isinstance(item, bytes) else item).split(":")
            assert (int(number), label) == (index, LABELS[index])
            assert float(value) == pytest.approx(row[index], rel=1e-3, abs=1e-4)


def one_by_one(module: Any, client: Any, form: dict[str, Any]) -> list[Any]:
    return [
        client.infer(**asked(module, form, images), request_id=str(number), model_version="1")
        for number, images in enumerate(batches(form))
    ]


def at_the_same_time(module: Any, client: Any, form: dict[str, Any]) -> list[Any]:
    if module is http_client:
        calls = [client.async_infer(**asked(module, form, images)) for images in batches(form)]
        return [call.get_result() for call in calls]
    done: queue.SimpleQueue[tuple[str, Any, Any]] = queue.SimpleQueue()
    for number, images in enumerate(batches(form)):

        def keep(result: Any, error: Any, number: int = number) -> None:
            done.put((str(number), result, error))

        client.async_infer(**asked(module, form, images), callback=keep, request_id=str(number))
    return in_order(done, len(batches(form)))


def streamed(module: Any, client: Any, form: dict[str, Any]) -> list[Any]:
    done: queue.SimpleQueue[tuple[str, Any, Any]] = queue.SimpleQueue()
    client.start_stream(lambda result, error: done.put((result.get_response().id, result, error)))
    for number, images in enumerate(batches(form)):
        client.async_stream_infer(**asked(module, form, images), request_id=str(number))
    results = in_order(done, len(batches(form)))
    client.stop_stream()
    return results


def in_order(done: queue.SimpleQueue[tuple[str, Any, Any]], count: int) -> list[Any]:
    found = sorted((done.get(timeout=120) for _ in range(count)), key=lambda item: item[0])
    assert [error for _, _, error in found] == [None] * count
    return [result for _, result, _ in found]


@pytest.mark.parametrize(
    ("module", "way"),
    [
        (http_client, one_by_one),
        (http_client, at_the_same_time),
        (grpc_client, one_by_one),
        (grpc_client, at_the_same_time),
        (grpc_client, streamed),
    ],
    ids=["http", "http async", "grpc", "grpc async", "grpc stream"],
)
def test_images_are_classified(
    server: TritonServer, module: Any, way: Callable[[Any, Any, dict[str, Any]], list[Any]]
) -> None:
    options = {"concurrency": 2} if module is http_client else {}
    client = module.InferenceServerClient(server.http if module is http_client else server.grpc, **options)
    form = described(module, client)
    results = way(module, client, form)
    expected = batches(form)
    assert len(results) == len(expected) == 2
    for result, images in zip(results, expected, strict=True):
        check(result.as_numpy(form["output"]), images)
    client.close()


def test_classes_come_as_json_too(server: TritonServer) -> None:
    client = http_client.InferenceServerClient(server.http)
    form = described(http_client, client)
    images = batches(form)[0]
    result = client.infer(**asked(http_client, form, images, is_binary=False))
    check(result.as_numpy(form["output"]), images)
    client.close()
