"""Models: batches of instances, padding, splitting, and the texts for instances that do not fit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from millpond.compat.mindspore_serving.server.register.recording import DeclaredModel
from millpond.compat.mindspore_serving.server.worker.graphs import ArrayInfo, find_file, load_graph
from millpond.compat.mindspore_serving.server.worker.models import MAX_FREE_BATCH, LoadedModel
from millpond.serve.servables.errors import ServableError

F32 = np.dtype("float32")


class AddGraph:
    """x1 + x2, and x1 - x2; notes the shapes it was run with."""

    num_outputs: int | None = 2

    def __init__(self, *shapes: tuple[int, ...]) -> None:
        self.inputs = tuple(ArrayInfo(F32, shape) for shape in shapes)
        self.runs: list[tuple[int, ...]] = []

    def run(self, arrays: Sequence[Any]) -> list[Any]:
        self.runs.append(arrays[0].shape)
        return [arrays[0] + arrays[1], arrays[0] - arrays[1]]


def instance(*values: float) -> tuple[Any, ...]:
    return tuple(np.full((2,), value, F32) for value in values)


def declared(**given: Any) -> DeclaredModel:
    return DeclaredModel("m", ("m",), "mindir", **given)


def test_a_short_batch_is_padded_to_the_fixed_one_and_padding_dropped() -> None:
    graph = AddGraph((4, 2), (4, 2))
    model = LoadedModel(declared(), [graph])
    assert model.batch_size == 4
    results = model.run([instance(index, 1) for index in range(6)], 0)
    assert graph.runs == [(4, 2), (4, 2)]
    assert [result[0].tolist() for result in results] == [[index + 1.0] * 2 for index in range(6)]
    assert [result[1].tolist() for result in results] == [[index - 1.0] * 2 for index in range(6)]


def test_a_free_batch_is_as_large_as_there_are_instances() -> None:
    graph = AddGraph((-1, 2), (-1, 2))
    model = LoadedModel(declared(), [graph])
    model.run([instance(1, 2)] * (MAX_FREE_BATCH + 3), 0)
    assert graph.runs == [(MAX_FREE_BATCH, 2), (3, 2)]


def test_without_a_batch_dimension_each_instance_runs_alone() -> None:
    graph = AddGraph((2,), (2,))
    model = LoadedModel(declared(with_batch_dim=False), [graph])
    assert len(model.run([instance(1, 2)] * 3, 0)) == 3
    assert graph.runs == [(2,)] * 3
    assert model.batch_size == 1


def test_inputs_without_a_batch_dimension_are_the_first_instances() -> None:
    graph = AddGraph((-1, 2), (2,))
    model = LoadedModel(declared(without_batch_dim_inputs=(1,)), [graph])
    results = model.run([instance(1, 10), instance(2, 20)], 0)
    assert [result[0].tolist() for result in results] == [[11.0] * 2, [12.0] * 2]


def test_an_instance_of_the_right_size_takes_the_models_shape() -> None:
    model = LoadedModel(declared(), [AddGraph((-1, 2), (-1, 2))])
    column = np.array([[1.0], [2.0]], F32)
    assert model.run([(column, column)], 0)[0][0].tolist() == [2.0, 4.0]


def test_instances_that_do_not_fit_fail_alone() -> None:
    model = LoadedModel(declared(with_batch_dim=False), [AddGraph((2, 2), (2, 2))])
    small, large = np.ones((2, 2), F32), np.ones((2, 3), F32)
    results = model.run([(large, large), (small, small), (small.astype(np.int32), small)], 0)
    assert isinstance(results[0], ServableError)
    assert results[0].message == "Given model input 0 size 24 not match the size 16 defined in model"
    assert results[1][0].tolist() == [[2.0, 2.0]] * 2
    assert results[2].message == (
        "Given model input 0 data type kMSI_Int32 not match the data type kMSI_Float32 defined in model"
    )


@pytest.mark.parametrize(
    ("instances", "subgraph", "text"),
    [
        ([()], 0, "The inputs count 0 of instance 0 is not equal to the inputs count 2 of the model"),
        ([instance(1, 2), instance(1)], 0, "The inputs count 1 of instance 1 is not equal to the inputs count 2"),
        ([instance(1, 2)], 1, "The model does not have subgraph of index 1, the subgraph count of the model is 1"),
        ([(np.ones(3, F32),) * 2], 0, "Given model input 0 size 12 not match the size 8 defined in model"),
    ],
)
def test_calls_that_do_not_fit_are_refused(instances: Any, subgraph: int, text: str) -> None:
    model = LoadedModel(declared(with_batch_dim=False), [AddGraph((2,), (2,))])
    with pytest.raises(RuntimeError, match=text):
        model.call(instances, subgraph)


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ((3, 2), "The inputs count 3 in register_method not equal to the count 2 defined in model"),
        ((2, 1), "The outputs count 1 in register_method not equal to the count 2 defined in model"),
    ],
)
def test_methods_must_use_a_model_as_it_is(counts: tuple[int, int], text: str) -> None:
    with pytest.raises(RuntimeError, match=text):
        LoadedModel(declared(counts={0: counts}), [AddGraph((-1, 2), (-1, 2))])


def test_an_output_that_is_no_batch_is_an_error_that_says_what_to_do() -> None:
    class Sum(AddGraph):
        def run(self, arrays: Sequence[Any]) -> list[Any]:
            return [arrays[0].sum()]

    results = LoadedModel(declared(), [Sum((-1, 2), (-1, 2))]).run([instance(1, 2)] * 2, 0)
    assert all("declare the model with with_batch_dim=False" in result.message for result in results)


class Add(torch.nn.Module):
    def forward(self, x1: torch.Tensor, x2: torch.Tensor) -> torch.Tensor:
        return x1 + x2


def test_exported_torch_files_say_their_shapes(tmp_path: Path) -> None:
    rows = torch.export.Dim("rows", min=1, max=8)
    examples = torch.ones(3, 2), torch.ones(3, 2)
    program = torch.export.export(Add(), examples, dynamic_shapes={"x1": {0: rows}, "x2": {0: rows}})
    torch.export.save(program, tmp_path / "add.pt2")
    graph = load_graph(find_file(tmp_path, "add.mindir"), 1)
    assert graph.inputs == (ArrayInfo(F32, (-1, 2)),) * 2
    model = LoadedModel(declared(counts={0: (2, 1)}), [graph])
    assert model.run([instance(1, 2), instance(3, 4)], 0)[1][0].tolist() == [7.0, 7.0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torchscript_files_run(tmp_path: Path) -> None:
    torch.jit.script(Add()).save(str(tmp_path / "add.pt"))
    model = LoadedModel(declared(counts={0: (2, 1)}), [load_graph(find_file(tmp_path, "add.mindir"), 1)])
    assert model.run([instance(1, 2)], 0)[0][0].tolist() == [3.0, 3.0]


def test_a_mindir_alone_says_how_to_export(tmp_path: Path) -> None:
    (tmp_path / "add.mindir").write_bytes(b"x")
    with pytest.raises(RuntimeError, match=r"mindspore\.export\(net, \*inputs, file_name='add', file_format='ONNX'\)"):
        find_file(tmp_path, "add.mindir")


@pytest.mark.parametrize("name", ["../secret.pt", "no.onnx"])
def test_files_that_are_not_there_are_named(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "1"
    folder.mkdir()
    (tmp_path / "secret.pt").write_bytes(b"")
    with pytest.raises(RuntimeError, match=r"is outside of the version's folder|does not exist"):
        find_file(folder, name)


def test_a_broken_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "add.pt2").write_bytes(b"no model")
    with pytest.raises(RuntimeError, match=r"add\.pt2 cannot be loaded"):
        load_graph(find_file(tmp_path, "add.pt2"), 1)
