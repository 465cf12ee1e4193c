"""Scripts and servable folders as MindSpore Serving's users write them, with ONNX models in place of theirs."""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

START_TIMEOUT_S = 120
STOP_TIMEOUT_S = 60

ADD_CONFIG = '''
import numpy as np
from mindspore_serving.server import register


def add_trans_datatype(x1, x2):
    return x1.astype(np.float32), x2.astype(np.float32)


model = register.declare_model(model_file="tensor_add.mindir", model_format="MindIR", with_batch_dim=False)


@register.register_method(output_names=["y"])
def add_common(x1, x2):
    y = register.add_stage(model, x1, x2, outputs_count=1)
    return y


@register.register_method(output_names=["y"])
def add_cast(x1, x2):
    x1, x2 = register.add_stage(add_trans_datatype, x1, x2, outputs_count=2)
    y = register.add_stage(model, x1, x2, outputs_count=1)
    return y
'''

ADD_SUB_CONFIG = '''
import numpy as np
from mindspore_serving.server import register


def add_trans_datatype(x1, x2):
    return x1.astype(np.float32), x2.astype(np.float32)


def add_1(x):
    return x + 1


add_model = register.declare_model(model_file="tensor_add.mindir", model_format="MindIR", with_batch_dim=False)
sub_model = register.declare_model(model_file="tensor_sub.mindir", model_format="MindIR", with_batch_dim=False)


@register.register_method(output_names=["y"])
def add_sub_only_model(x1, x2, x3):
    y = register.add_stage(add_model, x1, x2, outputs_count=1)
    y = register.add_stage(sub_model, y, x3, outputs_count=1)
    return y


@register.register_method(output_names=["y"])
def add_sub_complex(x1, x2, x3):
    x1, x2 = register.add_stage(add_trans_datatype, x1, x2, outputs_count=2)
    y = register.add_stage(add_model, x1, x2, outputs_count=1)
    y = register.add_stage(add_1, y, outputs_count=1)
    y = register.add_stage(sub_model, y, x3, outputs_count=1)
    y = register.add_stage(add_1, y, outputs_count=1)
    return y
'''

MATMUL_CONFIG = '''
from mindspore_serving.server import register

model = register.declare_model(model_file=["matmul_0.mindir", "matmul_1.mindir"], model_format="MindIR",
                               with_batch_dim=False)


def process(x, y):
    z1 = model.call(x, subgraph=0)
    z2 = model.call(y, subgraph=1)
    return z1 + z2


@register.register_method(output_names=["z"])
def predict(x, y):
    z = register.add_stage(process, x, y, outputs_count=1)
    return z
'''

LENET_CONFIG = '''
from io import BytesIO

import numpy as np
from mindspore_serving.server import register
from .labels import NAMES


def preprocess_eager(image):
    return np.load(BytesIO(image.tobytes())).astype(np.float32) / 255.0


def preprocess_pipeline(instances):
    for instance in instances:
        yield (preprocess_eager(instance[0]),)


def postprocess_top1(score):
    return NAMES[int(np.argmax(score))]


def postprocess_top2(score):
    index = np.argsort(score)[::-1][:2]
    return ";".join(NAMES[i] for i in index), score[index]


register.declare_servable(servable_file="lenet.mindir", model_format="MindIR")


@register.register_method(output_names=["label"])
def classify_top1(image):
    x = register.call_preprocess_pipeline(preprocess_pipeline, image)
    x = register.call_servable(x)
    x = register.call_postprocess(postprocess_top1, x)
    return x


@register.register_method(output_names=["label", "score"])
def classify_top2(image):
    x = register.call_preprocess(preprocess_eager, image)
    x = register.call_servable(x)
    label, score = register.call_postprocess(postprocess_top2, x)
    return label, score
'''

SERVER = '''
import os
import sys
{imports}


def start():
    servable_dir = os.path.dirname(os.path.realpath(sys.argv[0]))
    configs = [server.ServableStartConfig(servable_directory=servable_dir, servable_name=name,
                                          device_ids=(0, 1) if index == 0 else 0)
               for index, name in enumerate(sys.argv[3:])]
    server.start_servables(servable_configs=configs if len(configs) > 1 else configs[0])
    server.start_grpc_server(address=sys.argv[1])
    server.start_restful_server(address=sys.argv[2])


if __name__ == "__main__":
    start()
'''
LENET_BATCH = 3


def free_address() -> str:
    """Returns an address of this machine that was free a moment ago: the API takes no port 0."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


def write_onnx(path: Path, op: str, shapes: Sequence[Sequence[int | str]], result: Sequence[int | str]) -> None:
    """Writes a model of one operation on float32 inputs."""
    names = [f"x{index}" for index in range(len(shapes))]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))
        for name, shape in zip(names, shapes, strict=True)
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, list(result))
    graph = helper.make_graph([helper.make_node(op, names, ["y"])], op, inputs, [output])
    _save(path, graph)


def write_matmul(path: Path, weight: np.ndarray, shape: Sequence[int | str], result: Sequence[int | str]) -> None:
    """Writes x @ weight over the last dimensions of x, flattened after the first."""
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "matmul",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list(result))],
        [numpy_helper.from_array(weight.astype(np.float32), "w")],
    )
    _save(path, graph)


def _save(path: Path, graph: onnx.GraphProto) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)


def write_servable(folder: Path, name: str, config: str) -> Path:
    """Writes a servable's file and returns its folder."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "servable_config.py").write_text(config)
    return folder / name


def write_examples(folder: Path) -> dict[str, np.ndarray]:
    """Writes the servables of the original's examples and returns the weights of their models."""
    rng = np.random.default_rng(3)
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in (
        ("matmul_0", (96, 16)), ("matmul_1", (96, 16)), ("lenet", (32 * 32, 4)),
    )}
    for name, config, operations in (
        ("add", ADD_CONFIG, {"tensor_add": "Add"}),
        ("add_sub", ADD_SUB_CONFIG, {"tensor_add": "Add", "tensor_sub": "Sub"}),
    ):
        servable = write_servable(folder, name, config)
        for file, op in operations.items():
            write_onnx(servable / "1" / f"{file}.onnx", op, [(2, 2)] * 2, (2, 2))
    servable = write_servable(folder, "matmul", MATMUL_CONFIG)
    for index, rows in enumerate((128, 8)):
        write_matmul(servable / "1" / f"matmul_{index}.onnx", weights[f"matmul_{index}"], (rows, 96), (rows, 16))
    (folder / "matmul" / "servable_config.py").write_text(
        MATMUL_CONFIG.replace("return z1 + z2", "return z1.sum(axis=0) + z2.sum(axis=0)")
    )
    servable = write_servable(folder, "lenet", LENET_CONFIG)
    (servable / "labels.py").write_text('NAMES = ["zero", "one", "two", "three"]\n')
    write_matmul(servable / "1" / "lenet.onnx", weights["lenet"], (LENET_BATCH, 32, 32), (LENET_BATCH, 4))
    return weights


class Script:
    """A script in its own process; `wait_for` reads its output.

    Args:
        arguments: Of Python.
        folder: Where it runs.
    """

    def __init__(self, arguments: Sequence[str], folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        self.lines: list[str] = []
        self._queue: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def wait_for(self, line: str) -> None:
        """Waits for a line; an end before it is an error that shows all output."""
        while line not in self.lines:
            got = self._queue.get(timeout=START_TIMEOUT_S)
            if got is None:
                raise RuntimeError(f"the script ended without {line!r}:\n" + "\n".join(self.lines))
            self.lines.append(got)

    def end(self, number: signal.Signals | None = signal.SIGTERM) -> int:
        """Sends a signal and returns the exit status."""
        if number is not None and self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(STOP_TIMEOUT_S)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self._reader.join()
            assert self.process.stdout is not None
            self.process.stdout.close()
            while (line := self._queue.get()) is not None:
                self.lines.append(line)
            self._queue.put(None)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._queue.put(line.rstrip("\n"))
        self._queue.put(None)
