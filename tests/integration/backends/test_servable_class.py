"""`class Servable` in pools of real worker processes, asked through the registry as every protocol asks."""

from __future__ import annotations

import asyncio
import textwrap
from pathlib import Path

import numpy as np
import pytest

from millpond.serve.servables.backend import ModelFolder
from millpond.serve.servables.config import DynamicBatching, MethodSpec, ServableConfig
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.tensors import TensorSpec
from tests.integration.backends.conftest import Bench, request
from tests.integration.backends.test_python import NUMBERS

CALCULATOR = """
import os
from collections.abc import Iterator
from typing import Annotated, NamedTuple
import numpy as np
from numpy.typing import NDArray
from millpond.serving import Model, Servable, Shape, method, pipeline, stage

class Both(NamedTuple):
    sum: float
    text: str

class Calculator(Servable):
    max_batch_size = 32

    def load(self, parameters, folder, version):
        self.factor = int(parameters.get("factor", "1"))

    @method
    def add(self, a: float, b: float = 10.0) -> Both:
        "Adds two numbers."
        if a < 0:
            raise ValueError(f"{a} is negative")
        return Both(a + b, f"{a}+{b}")

    @method(output="scaled")
    def scale(self, x: Annotated[NDArray[np.float32], Shape(2, -1)]) -> Annotated[NDArray[np.float32], Shape(2, -1)]:
        return x * self.factor

    @method(batch_size=0)
    def sizes(self, text: list[str]) -> list[int]:
        for item in text:
            yield len(text) * 1000 + len(item)

    @method(batch_size=4)
    def limited(self, x: list[int]) -> list[int]:
        return [len(x)] * len(x)

    @method
    def where(self, x: int) -> int:
        import time
        time.sleep(0.05)
        return os.getpid()

    @method
    def count(self, up_to: int) -> Iterator[int]:
        for number in range(up_to):
            if number == 5:
                raise ValueError("only up to five")
            yield number

    double = Model("double")

    @stage
    def parse(self, text: str):
        return np.array([int(text)], np.int32)

    @stage(batch_size=8, outputs=2)
    def describe(self, values):
        return [(int(value[0]), f"<{int(value[0])}>") for value in values]

    @pipeline
    def twice(self, text: str) -> Both:
        number, shown = self.describe(self.double(self.parse(text)))
        return number, shown
"""
DOUBLE = """
import triton_python_backend_utils as pb
class TritonPythonModel:
    def execute(self, requests):
        return [pb.InferenceResponse([pb.Tensor("OUT", r.inputs()[0].as_numpy() * 2)]) for r in requests]
"""


def write(folder: Path, source: str) -> ModelFolder:
    path = folder / "calc"
    (path / "1").mkdir(parents=True)
    (path / "1" / "servable.py").write_text(textwrap.dedent(source))
    return ModelFolder(path, 1)


async def add(bench: Bench, source: str = CALCULATOR, **parameters: str) -> ServableConfig:
    config = ServableConfig("calc", "stages", (), (), parameters=parameters, dynamic_batching=DynamicBatching())
    await bench.servables.add(config, write(bench.folder, source))
    return bench.servables.find("calc").config


async def test_a_class_describes_itself_to_every_protocol(bench: Bench) -> None:
    config = await add(bench)
    assert config.inputs == (TensorSpec("a", "FP64", (1,)), TensorSpec("b", "FP64", (1,), optional=True))
    assert config.outputs == (TensorSpec("sum", "FP64", (1,)), TensorSpec("text", "BYTES", (1,)))
    assert config.max_batch_size == 32
    assert config.methods[0] == MethodSpec(
        "add", ("a", "b"), ("sum", "text"), config.inputs, False, config.outputs, "Adds two numbers."
    )
    assert (config.methods[1].name, config.methods[1].inputs, config.methods[1].outputs) == (
        "scale",
        ("x",),
        ("scaled",),
    )


async def test_a_batch_of_the_default_method_is_one_request(bench: Bench) -> None:
    await add(bench)
    batch = {"a": np.array([[1.0], [2.5], [4.0]]), "b": np.array([[3.0], [4.0], [5.0]])}
    answer = await bench.infer("calc", batch)
    assert answer.outputs["sum"].array.tolist() == [[4.0], [6.5], [9.0]]
    assert answer.outputs["text"].array.tolist() == [[b"1.0+3.0"], [b"2.5+4.0"], [b"4.0+5.0"]]
    alone = await bench.infer("calc", {"a": np.array([[1.0]])})
    assert alone.outputs["sum"].array.tolist() == [[11.0]]


async def test_a_named_method_takes_one_instance(bench: Bench) -> None:
    await add(bench, factor="3")
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    scaled = (await bench.infer("calc", {"x": x}, method="scale")).outputs["scaled"]
    assert scaled.array.tolist() == (x * 3).tolist()
    for wrong, text in (
        ({"x": x.astype(np.float64)}, "Input 'x' is of type FP64; the method takes FP32."),
        ({"x": x[0]}, r"Input 'x' has shape \[3\]; the method takes \[2, -1\]."),
    ):
        with pytest.raises(ServableError, match=text) as caught:
            await bench.infer("calc", wrong, method="scale")
        assert caught.value.code == "invalid_argument"


async def test_a_failed_instance_fails_alone(bench: Bench) -> None:
    await add(bench)

    async def one(value: float) -> object:
        try:
            answer = await bench.infer("calc", {"a": np.array([value]), "b": np.array([1.0])}, method="add")
        except ServableError as error:
            return error.message
        return float(answer.outputs["sum"].array[0])

    assert await asyncio.gather(*map(one, [1.0, -2.0, 3.0])) == [
        2.0,
        "Stage 'add' failed: ValueError: -2.0 is negative",
        4.0,
    ]


async def test_batched_functions_get_columns_and_no_more_than_they_take(bench: Bench) -> None:
    await add(bench)
    texts = [np.array([text], np.object_) for text in (b"a", b"bb", "ü".encode())]
    answers = await asyncio.gather(*(bench.infer("calc", {"text": text}, method="sizes") for text in texts))
    sizes = [int(answer.outputs["output"].array[0]) for answer in answers]
    assert [size % 1000 for size in sizes] == [1, 2, 1]
    limited = await asyncio.gather(*(bench.infer("calc", {"x": np.array([n])}, method="limited") for n in range(10)))
    assert max(int(answer.outputs["output"].array[0]) for answer in limited) <= 4


async def test_instances_of_one_request_are_spread_over_workers_and_merged_in_order(bench: Bench) -> None:
    source = CALCULATOR.replace("def add(", "def other(").replace(
        "    @method\n    def where", "    num_workers = 3\n    @method\n    def where"
    )
    first = source.index("    @method\n    def other")
    head = "    @method\n    def order(self, x: int) -> Both:\n        return Both(x * 2, str(os.getpid()))\n\n"
    await add(bench, source[:first] + head + source[first:])
    values = np.arange(20).reshape(20, 1)
    answer = await bench.infer("calc", {"x": values})
    assert answer.outputs["sum"].array[:, 0].tolist() == [2.0 * n for n in range(20)]
    pids = [text.decode() for text in answer.outputs["text"].array[:, 0]]
    assert len(set(pids)) == 3
    assert pids == sorted(pids, key=pids.index)  # contiguous parts


async def test_a_stream_is_a_generator_and_its_error_ends_it(bench: Bench) -> None:
    await add(bench)
    seen: list[int] = []
    message = ""
    async for response in bench.servables.stream(request("calc", {"up_to": np.array([9])}, method="count")):
        if response.error is not None:
            message = response.error.message
        seen += [int(tensor.array[0]) for tensor in response.outputs.values()]
    assert seen == [0, 1, 2, 3, 4]
    assert message == "Stage 'count' failed: ValueError: only up to five"


async def test_a_pipeline_runs_functions_and_models(bench: Bench) -> None:
    await bench.add("double", NUMBERS % ("double", 16), DOUBLE)
    await add(bench)

    async def one(text: str) -> object:
        try:
            answer = await bench.infer("calc", {"text": np.array([text.encode()], np.object_)}, method="twice")
        except ServableError as error:
            return error.message
        return (float(answer.outputs["sum"].array[0]), answer.outputs["text"].array[0])

    answers = await asyncio.gather(*map(one, ["4", "x", "21"]))
    assert answers[0] == (8.0, b"<8>")
    assert "Stage 'parse' failed: ValueError" in str(answers[1])
    assert answers[2] == (42.0, b"<42>")
    await bench.servables.remove("double")
    assert await one("4") == "Request for unknown model: 'double' has no available versions"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("@method\n    def f(self, x) -> int: return x", "parameter 'x' of 'f' has no annotation"),
        ("@method\n    def f(self, x: set) -> int: return 1", "parameter 'x' of 'f' is annotated set: use int"),
        ("@method(batch_size=2)\n    def f(self, x: int) -> list[int]: return x", "must be annotated list"),
        ("@pipeline\n    def f(self, x: int) -> int: return self.g(x)\n    def g(self, x): ...", "neither a @stage"),
        ("@pipeline\n    def f(self, x: int) -> int:\n        if x: return x", "a pipeline has no branches"),
        ("pass", "has no @method and no @pipeline"),
    ],
)
async def test_a_class_that_cannot_be_served_says_why(bench: Bench, body: str, text: str) -> None:
    source = f"from millpond.serving import *\nclass Wrong(Servable):\n    {body}\n"
    with pytest.raises(ServableError) as caught:
        await add(bench, source)
    assert text in caught.value.message


async def test_a_dead_worker_of_a_pool_is_replaced_while_the_others_answer(bench: Bench) -> None:
    source = CALCULATOR.replace("class Calculator(Servable):", "class Calculator(Servable):\n    num_workers = 2") + (
        "\n    @method\n    def die(self, x: int) -> int:\n        os._exit(4)\n"
    )
    await add(bench, source)
    with pytest.raises(ServableError, match="exited with status 4") as caught:
        await bench.infer("calc", {"x": np.array([1])}, method="die")
    assert caught.value.code == "unavailable"
    one = {"a": np.array([[1.0]])}
    assert (await bench.infer_when_up("calc", one)).outputs["sum"].array.tolist() == [[11.0]]
