"""ONNX and torch models made here, in real worker processes; expected values come from numpy."""

from __future__ import annotations

import asyncio
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from millpond.serve.repository.triton_config import parse_config_text
from millpond.serve.servables.backend import ModelFolder
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.tensors import Tensor, TensorSpec
from tests.integration.backends.conftest import Bench, request

PYTORCH = """
name: "%s" backend: "pytorch" max_batch_size: 8
input [ { name: "%s" data_type: TYPE_FP32 dims: [ 3 ] }, { name: "%s" data_type: TYPE_FP32 dims: [ 3 ] } ]
output [ { name: "%s" data_type: TYPE_FP32 dims: [ 3 ] }, { name: "%s" data_type: TYPE_FP32 dims: [ 3 ] } ]
dynamic_batching { max_queue_delay_microseconds: 2000 }
"""


class SumAndDifference(torch.nn.Module):
    def forward(self, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return left + right, left - right


def folder_of(bench: Bench, name: str) -> Path:
    path = bench.folder / name / "1"
    path.mkdir(parents=True)
    return path


def write_script(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch would rather have exported programs
        torch.jit.script(SumAndDifference()).save(str(path / "model.pt"))


def write_onnx(path: Path, batch: int | str, datatype: int = TensorProto.FLOAT) -> None:
    """Writes y = x + x, and rows = the batch's size an instance, which shows padding and merging."""
    x = helper.make_tensor_value_info("x", datatype, [batch, 3])
    y = helper.make_tensor_value_info("y", datatype, [batch, 3])
    rows = helper.make_tensor_value_info("rows", TensorProto.INT64, [batch, 2])
    nodes = [
        helper.make_node("Add", ["x", "x"], ["y"]),
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Shape", ["x"], ["size"], start=0, end=1),
        helper.make_node("Constant", [], ["one"], value_ints=[1]),
        helper.make_node("Concat", ["size", "one"], ["repeats"], axis=0),
        helper.make_node("Unsqueeze", ["shape", "axis"], ["row"]),
        helper.make_node("Constant", [], ["axis"], value_ints=[0]),
        helper.make_node("Tile", ["row", "repeats"], ["rows"]),
    ]
    nodes.insert(0, nodes.pop(6))
    graph = helper.make_graph(nodes, "double", [x], [y, rows])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path / "model.onnx"))


async def add(bench: Bench, name: str, config: str) -> None:
    folder = ModelFolder(bench.folder / name, 1)
    await bench.servables.add(parse_config_text(config, "config.pbtxt", name=name), folder)


async def test_an_onnx_file_says_its_own_configuration(bench: Bench) -> None:
    write_onnx(folder_of(bench, "double"), "batch")
    await add(bench, "double", 'backend: "onnxruntime"')
    config = bench.servables.find("double").config
    assert config.inputs == (TensorSpec("x", "FP32", (3,)),)
    assert config.outputs == (TensorSpec("y", "FP32", (3,)), TensorSpec("rows", "INT64", (2,)))
    assert config.max_batch_size == 4
    assert config.dynamic_batching is not None
    assert config.document is not None
    x = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    answer = await bench.infer("double", {"x": x})
    assert answer.outputs["y"].array.tolist() == (2 * x).tolist()
    assert set((await bench.infer("double", {"x": x}, outputs=("rows",))).outputs) == {"rows"}


async def test_requests_of_several_clients_are_one_batch_of_the_model(bench: Bench) -> None:
    write_onnx(folder_of(bench, "double"), "batch")
    await add(
        bench,
        "double",
        'backend: "onnxruntime" max_batch_size: 8 dynamic_batching { preferred_batch_size: 8 '
        "max_queue_delay_microseconds: 500000 }",
    )
    xs = [np.full((2, 3), n, np.float32) for n in range(4)]
    answers = await asyncio.gather(*(bench.infer("double", {"x": x}) for x in xs))
    assert [answer.outputs["y"].array.tolist() for answer in answers] == [(2 * x).tolist() for x in xs]
    assert [answer.outputs["rows"].array.tolist() for answer in answers] == [[[8, 3], [8, 3]]] * 4


async def test_a_batch_is_filled_up_to_a_fixed_size(bench: Bench) -> None:
    write_onnx(folder_of(bench, "fixed"), 5)
    await add(bench, "fixed", 'backend: "onnxruntime" max_batch_size: 5')
    x = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    answer = await bench.infer("fixed", {"x": x})
    assert answer.outputs["y"].array.tolist() == (2 * x).tolist()
    assert answer.outputs["rows"].array.tolist() == [[5, 3], [5, 3]]


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ("max_batch_size: 6", "does not support batching: max_batch_size is 6"),
        ('input [ { name: "z" data_type: TYPE_FP32 dims: [ 5, 3 ] } ]', "unexpected inference input 'z'"),
        ('input [ { name: "x" data_type: TYPE_INT32 dims: [ 5, 3 ] } ]', "configuration expects datatype INT32"),
        ('input [ { name: "x" data_type: TYPE_FP32 dims: [ 5, 4 ] } ]', "the model expects shape [5, 3]"),
    ],
)
async def test_a_configuration_that_contradicts_the_file_is_refused(bench: Bench, config: str, text: str) -> None:
    write_onnx(folder_of(bench, "fixed"), 5)
    with pytest.raises(ServableError) as caught:
        await add(bench, "fixed", f'backend: "onnxruntime" {config}')
    assert text in caught.value.message


@pytest.mark.parametrize(("backend", "file"), [("onnxruntime", "model.onnx"), ("pytorch", "model.pt")])
async def test_a_file_that_is_no_model_says_so_without_its_path(bench: Bench, backend: str, file: str) -> None:
    (folder_of(bench, "junk") / file).write_bytes(b"not a model")
    with pytest.raises(ServableError, match="cannot load the model") as caught:
        await add(bench, "junk", f'backend: "{backend}"')
    assert str(bench.folder) not in caught.value.message


async def test_text_passes_through_onnx(bench: Bench) -> None:
    texts = [helper.make_tensor_value_info(name, TensorProto.STRING, ["batch", "n"]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "same", texts[:1], texts[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(folder_of(bench, "text") / "model.onnx"))
    await add(bench, "text", 'backend: "onnxruntime"')
    x = np.array([["ü".encode(), b"b"]], np.object_)
    assert (await bench.infer("text", {"x": x})).outputs["y"].array.tolist() == x.tolist()
    with pytest.raises(ServableError, match="Input 'x' is not UTF-8") as caught:
        await bench.infer("text", {"x": np.array([[b"\xff"]], np.object_)})
    assert caught.value.code == "invalid_argument"


@pytest.mark.parametrize(
    "names", [("INPUT__0", "INPUT__1", "OUTPUT__0", "OUTPUT__1"), ("right", "left", "DIFFERENCE__1", "SUM__0")]
)
async def test_torchscript_finds_positions_by_number_or_by_name(bench: Bench, names: tuple[str, str, str, str]) -> None:
    write_script(folder_of(bench, "script"))
    await add(bench, "script", PYTORCH % ("script", *names))
    given = {"INPUT__0": 1.0, "INPUT__1": 2.0, "left": 1.0, "right": 2.0}
    inputs = {name: np.full((2, 3), given[name], np.float32) for name in names[:2]}
    wanted = {"OUTPUT__0": 3.0, "OUTPUT__1": -1.0, "SUM__0": 3.0, "DIFFERENCE__1": -1.0}
    answers = await asyncio.gather(*(bench.infer("script", inputs) for _ in range(3)))
    for answer in answers:
        assert {name: tensor.array.tolist() for name, tensor in answer.outputs.items()} == {
            name: [[wanted[name]] * 3] * 2 for name in names[2:]
        }


async def test_torchscript_with_other_names_is_refused(bench: Bench) -> None:
    write_script(folder_of(bench, "script"))
    with pytest.raises(ServableError, match="input 'a' must be named <name>__<index> or be one of left, right"):
        await add(bench, "script", PYTORCH % ("script", "a", "b", "OUTPUT__0", "OUTPUT__1"))


async def test_an_exported_program_says_its_own_configuration(bench: Bench) -> None:
    class Half(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x / 2

    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(Half(), (torch.ones(2, 3, dtype=torch.bfloat16),), dynamic_shapes={"x": {0: batch}})
    torch.export.save(program, folder_of(bench, "half") / "model.pt2")
    await add(bench, "half", 'backend: "pytorch"')
    config = bench.servables.find("half").config
    assert config.inputs == (TensorSpec("INPUT__0", "BF16", (3,)),)
    assert config.outputs == (TensorSpec("OUTPUT__0", "BF16", (3,)),)
    assert config.max_batch_size == 4
    asked = request("half", {})
    asked.inputs = {"INPUT__0": Tensor("INPUT__0", "BF16", np.full((3, 3), 0x4000, np.uint16))}  # 2.0
    answer = await bench.servables.infer(asked)
    assert answer.outputs["OUTPUT__0"].array.tolist() == [[0x3F80] * 3] * 3  # 1.0
