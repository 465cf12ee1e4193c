"""Writes the models that the comparison with a real Triton asks, beside the recordings' own.

Every model is a file for Triton's Python back end and runs in both servers unchanged. `triton_differential` calls it.
"""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

GOLDEN = Path(__file__).parents[2] / "tests" / "golden" / "triton-2.51" / "models"
TYPES = {
    "BOOL": "BOOL",
    "UINT8": "UINT8",
    "UINT16": "UINT16",
    "UINT32": "UINT32",
    "UINT64": "UINT64",
    "INT8": "INT8",
    "INT16": "INT16",
    "INT32": "INT32",
    "INT64": "INT64",
    "FP16": "FP16",
    "FP32": "FP32",
    "FP64": "FP64",
    "BYTES": "STRING",
}
_HEAD = "import json\nimport numpy as np\nimport triton_python_backend_utils as pb\n\n\nclass TritonPythonModel:\n"
_EACH = _HEAD + "    def execute(self, requests):\n        return [self.answer(r) for r in requests]\n\n"
IDENTITY = _EACH + (
    "    def answer(self, request):\n"
    "        return pb.InferenceResponse(\n"
    '            [pb.Tensor(t.name().replace("IN", "OUT"), t.as_numpy()) for t in request.inputs()]\n'
    "        )\n"
)
PARAMETERS = _EACH + (
    "    def answer(self, request):\n"
    "        text = request.parameters() + '|' + request.request_id() + '|' + str(request.correlation_id())\n"
    "        return pb.InferenceResponse([pb.Tensor('OUT', np.array([text.encode()], dtype=np.object_))])\n"
)
VERSION = _HEAD + (
    "    def initialize(self, args):\n"
    "        self.version = int(args['model_version'])\n\n"
    "    def execute(self, requests):\n"
    "        value = np.array([self.version], dtype=np.int32)\n"
    "        return [pb.InferenceResponse([pb.Tensor('OUT', value)]) for _ in requests]\n"
)
AUTOMATIC = _HEAD + (
    "    @staticmethod\n"
    "    def auto_complete_config(config):\n"
    "        config.add_input({'name': 'IN', 'data_type': 'TYPE_INT32', 'dims': [-1]})\n"
    "        config.add_output({'name': 'OUT', 'data_type': 'TYPE_INT32', 'dims': [-1]})\n"
    "        config.set_max_batch_size(4)\n"
    "        return config\n\n"
    "    def execute(self, requests):\n"
    "        return [\n"
    "            pb.InferenceResponse([pb.Tensor('OUT', pb.get_input_tensor_by_name(r, 'IN').as_numpy())])\n"
    "            for r in requests\n"
    "        ]\n"
)
BROKEN = _HEAD + (
    "    def initialize(self, args):\n"
    "        raise ValueError('this model cannot start')\n\n"
    "    def execute(self, requests):\n"
    "        return []\n"
)


def tensor(name: str, data_type: str, dims: str, more: str = "") -> str:
    """Returns one input or output of a configuration."""
    return f'{{ name: "{name}" data_type: TYPE_{data_type} dims: {dims} {more} }}'


def configuration(inputs: list[str], outputs: list[str], batch: int, more: str = "") -> str:
    """Returns the text of a configuration for the Python back end."""
    return (
        f'backend: "python"\nmax_batch_size: {batch}\ninput [ {", ".join(inputs)} ]\n'
        f"output [ {', '.join(outputs)} ]\ninstance_group [ {{ count: 1 kind: KIND_CPU }} ]\n{more}\n"
    )


def add(folder: Path, name: str, code: str, config: str | None, versions: tuple[int, ...] = (1,)) -> None:
    """Writes one model."""
    for version in versions:
        (folder / name / str(version)).mkdir(parents=True)
        (folder / name / str(version) / "model.py").write_text(code)
    if config is not None:
        (folder / name / "config.pbtxt").write_text(f'name: "{name}"\n{config}')


def write_models(folder: Path) -> None:
    """Writes all models into an empty folder."""
    shutil.copytree(GOLDEN, folder, dirs_exist_ok=True)
    (folder / "ens" / "1").mkdir()
    for wire, data_type in TYPES.items():
        shape = configuration([tensor("IN", data_type, "[ -1 ]")], [tensor("OUT", data_type, "[ -1 ]")], 8)
        add(folder, f"id_{wire.lower()}", IDENTITY, shape)
    fixed = [tensor("IN", "FP32", "[ 2, 3 ]")], [tensor("OUT", "FP32", "[ 2, 3 ]", 'label_filename: "labels.txt"')]
    add(folder, "classes", IDENTITY, configuration(*fixed, 0))
    (folder / "classes" / "labels.txt").write_text("heron\ncarp\npike\nreed\n")
    two = [tensor("IN", "FP32", "[ -1 ]"), tensor("IN_B", "INT32", "[ -1 ]", "optional: true")]
    both = [tensor("OUT", "FP32", "[ -1 ]"), tensor("OUT_B", "INT32", "[ -1 ]")]
    add(folder, "optional", IDENTITY, configuration(two, both, 4))
    priority = "dynamic_batching { priority_levels: 3 default_priority_level: 2 }"
    add(folder, "priorities", IDENTITY, configuration(*identity("INT32"), 4, priority))
    add(folder, "counted", IDENTITY, configuration(*identity("INT32"), 4))
    add(folder, "no_batch", IDENTITY, configuration(*identity("INT32", "[ 2, -1 ]"), 0))
    reshaped = [tensor("IN", "INT32", "[ 1 ]", "reshape: { shape: [ ] }")]
    add(folder, "reshaped", IDENTITY, configuration(reshaped, [tensor("OUT", "INT32", "[ 1 ]", reshape())], 4))
    texts = [tensor("IN", "INT32", "[ 1 ]")], [tensor("OUT", "STRING", "[ 1 ]")]
    add(folder, "parameters", PARAMETERS, configuration(*texts, 0))
    numbered = configuration([tensor("IN", "INT32", "[ 1 ]")], [tensor("OUT", "INT32", "[ 1 ]")], 0)
    add(folder, "every_version", VERSION, numbered + "version_policy: { all { } }\n", (1, 2, 10))
    add(folder, "newest_version", VERSION, numbered, (1, 3))
    add(folder, "some_versions", VERSION, numbered + "version_policy: { specific { versions: [ 1, 3 ] } }\n", (1, 2, 3))
    add(folder, "automatic", AUTOMATIC, None)
    add(folder, "broken", BROKEN, configuration(*identity("INT32"), 0))
    (folder / "chain" / "1").mkdir(parents=True)
    (folder / "chain" / "config.pbtxt").write_text(chain())


def identity(data_type: str, dims: str = "[ -1 ]") -> tuple[list[str], list[str]]:
    """Returns the input and the output of a model that answers what it got."""
    return [tensor("IN", data_type, dims)], [tensor("OUT", data_type, dims)]


def reshape() -> str:
    """Returns the reshape of a tensor of one element to a scalar."""
    return "reshape: { shape: [ ] }"


def chain() -> str:
    """Returns an ensemble of three steps, one after the other."""
    names = ["IN", "first", "second", "OUT"]
    steps = [
        f'{{ model_name: "counted" model_version: -1 input_map {{ key: "IN" value: "{a}" }} '
        f'output_map {{ key: "OUT" value: "{b}" }} }}'
        for a, b in itertools.pairwise(names)
    ]
    ends = f"input [ {tensor('IN', 'INT32', '[ -1 ]')} ]\noutput [ {tensor('OUT', 'INT32', '[ -1 ]')} ]\n"
    head = 'name: "chain"\nplatform: "ensemble"\nmax_batch_size: 4\n'
    return f"{head}{ends}ensemble_scheduling {{ step [ {', '.join(steps)} ] }}\n"
