"""The models of the comparison of speed, files for Triton's Python back end, and the requests to them.

Knows no servers. `tensor_models` calls it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.serving.triton_models import configuration, tensor
from millpond.serve.proto import inference_pb2 as pb

WIDTH = 16
LARGE = (1 << 20) // 4
HIDDEN = 1024
NUM_LAYERS, NUM_DEEP = 12, 24
SIDE = 32
IMAGE = 3 * SIDE * SIDE
_HEAD = "import numpy as np\nimport triton_python_backend_utils as pb\n\n\nclass TritonPythonModel:\n"
# The end of a model that batches: the rows of `x`, to whom they belong.
_SPLIT = (
    "        answers, start = [], 0\n"
    "        for array in arrays:\n"
    "            rows = x[start : start + len(array)]\n"
    "            start += len(array)\n"
    '            answers.append(pb.InferenceResponse([pb.Tensor("OUT", rows)]))\n'
    "        return answers\n"
)
IDENTITY = _HEAD + (
    "    def execute(self, requests):\n"
    "        return [\n"
    '            pb.InferenceResponse([pb.Tensor("OUT", pb.get_input_tensor_by_name(r, "IN").as_numpy())])\n'
    "            for r in requests\n"
    "        ]\n"
)
ADD = _HEAD + (
    "    def execute(self, requests):\n"
    "        answers = []\n"
    "        for r in requests:\n"
    '            one = pb.get_input_tensor_by_name(r, "IN").as_numpy()\n'
    '            other = pb.get_input_tensor_by_name(r, "IN_B").as_numpy()\n'
    '            answers.append(pb.InferenceResponse([pb.Tensor("OUT", one + other)]))\n'
    "        return answers\n"
)
SUM = _HEAD + (
    "    def execute(self, requests):\n"
    "        answers = []\n"
    "        for r in requests:\n"
    '            array = pb.get_input_tensor_by_name(r, "IN").as_numpy()\n'
    '            answers.append(pb.InferenceResponse([pb.Tensor("OUT", array.sum(1, keepdims=True))]))\n'
    "        return answers\n"
)


def layers(count: int) -> str:
    """What a batch costs is mostly the layers' weights, so that a server that batches well is worth something."""
    return _HEAD + (
        "    def initialize(self, args):\n"
        "        random = np.random.default_rng(1)\n"
        f"        self.first = random.standard_normal(({WIDTH}, {HIDDEN}), dtype=np.float32)\n"
        f"        shape = ({count}, {HIDDEN}, {HIDDEN})\n"
        "        self.layers = random.standard_normal(shape, dtype=np.float32) / 32\n\n"
        "    def execute(self, requests):\n"
        '        arrays = [pb.get_input_tensor_by_name(r, "IN").as_numpy() for r in requests]\n'
        "        x = np.concatenate(arrays) @ self.first\n"
        "        for layer in self.layers:\n"
        "            x = np.maximum(x @ layer, 0)\n"
        "        x = x[:, :16]\n" + _SPLIT
    )


# What a row costs is computing: a batch is worth less, and a server has to keep the model busy.
IMAGES = _HEAD + (
    "    def initialize(self, args):\n"
    "        random = np.random.default_rng(1)\n"
    "        shapes = ((27, 32), (288, 64), (576, 64))\n"
    "        self.layers = [random.standard_normal(shape, dtype=np.float32) / 16 for shape in shapes]\n"
    "        self.last = random.standard_normal((64, 16), dtype=np.float32)\n\n"
    "    def conv(self, x, weights):\n"
    "        views = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))\n"
    "        n, height, width = views.shape[:3]\n"
    "        flat = views.reshape(n * height * width, len(weights))\n"
    "        return np.maximum(flat @ weights, 0).reshape(n, height, width, -1)\n\n"
    "    def execute(self, requests):\n"
    '        arrays = [pb.get_input_tensor_by_name(r, "IN").as_numpy() for r in requests]\n'
    f"        x = np.concatenate(arrays).reshape(-1, {SIDE}, {SIDE}, 3)\n"
    "        for layer in self.layers:\n"
    "            x = self.conv(x, layer)\n"
    "            even = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]\n"
    "            x = np.maximum(np.maximum(even[:, ::2, ::2], even[:, 1::2, ::2]), even[:, ::2, 1::2])\n"
    "        x = x.mean((1, 2)) @ self.last\n" + _SPLIT
)


@dataclass(frozen=True, slots=True)
class Case:
    """What is asked.

    Attributes:
        model: Its name.
        rows: Batch size of each request.
        width: Elements of a row.
        inputs: Names of the inputs; all get the same kind of data.
    """

    model: str
    rows: int
    width: int = WIDTH
    inputs: tuple[str, ...] = ("IN",)

    @property
    def name(self) -> str:
        """How tables call it."""
        return f"{self.model} x{self.rows}"

    def arrays(self) -> dict[str, np.ndarray[tuple[int, int], np.dtype[np.float32]]]:
        """Returns the inputs."""
        random = np.random.default_rng(self.rows)
        return {name: random.standard_normal((self.rows, self.width), dtype=np.float32) for name in self.inputs}

    def http(self, port: int) -> bytes:
        """Returns the request as HTTP with binary tensors."""
        arrays = self.arrays()
        entries = [
            {"name": n, "shape": a.shape, "datatype": "FP32", "parameters": {"binary_data_size": a.nbytes}}
            for n, a in arrays.items()
        ]
        outputs = [{"name": "OUT", "parameters": {"binary_data": True}}]
        head = json.dumps({"inputs": entries, "outputs": outputs}).encode()
        body = head + b"".join(array.tobytes() for array in arrays.values())
        return (
            f"POST /v2/models/{self.model}/infer HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
            f"Content-Type: application/octet-stream\r\nInference-Header-Content-Length: {len(head)}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        ).encode() + body

    def message(self) -> bytes:
        """Returns the request as gRPC's message."""
        message = pb.ModelInferRequest(model_name=self.model)
        for name, array in self.arrays().items():
            message.inputs.add(name=name, datatype="FP32", shape=array.shape)
            message.raw_input_contents.append(array.tobytes())
        message.outputs.add(name="OUT")
        return message.SerializeToString()

    def tail(self) -> bytes:
        """Returns the end of a right answer: the output's bytes; empty where only its size is known."""
        arrays = list(self.arrays().values())
        if self.model == "add":
            return (arrays[0] + arrays[1]).tobytes()
        return arrays[0].tobytes() if self.model in ("identity", "stages", "waits") else b""


def grpc_output(body: bytes) -> bytes:
    """Returns the output of a response over gRPC."""
    return pb.ModelInferResponse.FromString(body).raw_output_contents[0]


def write_folder(folder: Path, delay_us: int, *, is_identity_alone: bool = False) -> None:
    """Writes all models, or identity alone; `delay_us` is how long the one that batches may wait."""
    one, other = tensor("IN", "FP32", f"[ {WIDTH} ]"), tensor("IN_B", "FP32", f"[ {WIDTH} ]")
    out = tensor("OUT", "FP32", f"[ {WIDTH} ]")
    batching = f"dynamic_batching {{ max_queue_delay_microseconds: {delay_us} }}"
    large = configuration([tensor("IN", "FP32", f"[ {LARGE} ]")], [tensor("OUT", "FP32", "[ 1 ]")], 8)
    _add(folder, "identity", IDENTITY, configuration([one], [out], 64))
    if is_identity_alone:
        return
    _add(folder, "add", ADD, configuration([one, other], [out], 64))
    _add(folder, "large", SUM, large)
    for name, count in (("layers", NUM_LAYERS), ("deep", NUM_DEEP)):
        _add(folder, name, layers(count), configuration([one], [out], 64, batching))
    image = tensor("IN", "FP32", f"[ {IMAGE} ]")
    _add(folder, "images", IMAGES, configuration([image], [out], 64, batching))
    _add(folder, "waits", IDENTITY, configuration([one], [out], 64, batching))
    for name in ("first", "second", "third"):
        _add(folder, name, IDENTITY, configuration([one], [out], 64))
    steps = [
        f'{{ model_name: "{name}" model_version: -1 input_map {{ key: "IN" value: "{before}" }} '
        f'output_map {{ key: "OUT" value: "{after}" }} }}'
        for name, before, after in (("first", "IN", "a"), ("second", "a", "b"), ("third", "b", "OUT"))
    ]
    (folder / "stages" / "1").mkdir(parents=True)
    (folder / "stages" / "config.pbtxt").write_text(
        f'name: "stages"\nplatform: "ensemble"\nmax_batch_size: 64\ninput [ {one} ]\noutput [ {out} ]\n'
        f"ensemble_scheduling {{ step [ {', '.join(steps)} ] }}\n"
    )


def _add(folder: Path, name: str, code: str, config: str) -> None:
    (folder / name / "1").mkdir(parents=True)
    (folder / name / "1" / "model.py").write_text(code)
    (folder / name / "config.pbtxt").write_text(f'name: "{name}"\n{config}')
