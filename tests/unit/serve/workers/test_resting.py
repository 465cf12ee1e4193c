"""Threads of a worker's numerical libraries sleep between batches; the operator's environment counts more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from millpond.serve.workers.resting import worker_environment

PAUSE_S = 0.02
CALLS = {
    "numpy": "import numpy\nx = numpy.ones((256, 512), numpy.float32)\nw = numpy.ones((512, 512), numpy.float32)\n"
    "call = lambda: x @ w\n",
    "onnxruntime": "import sys\nimport numpy\nfrom types import SimpleNamespace\n"
    "from millpond.serve.workers.runners.onnx_model import load\n"
    "x = numpy.ones((256, 512), numpy.float32)\n"
    "model = load(SimpleNamespace(), {'file': sys.argv[1], 'name': 'm', 'parameters': {}})\n"
    "session = model._graph._session\ncall = lambda: session.run(None, {'x': x})\n",
}
BURNT = (
    "import time\n"
    "for _ in range(3):\n    call()\n"
    "least = 9.0\n"
    "for _ in range(5):\n"
    "    call()\n    began = time.process_time()\n"
    f"    time.sleep({PAUSE_S})\n    least = min(least, time.process_time() - began)\n"
    "print(least)\n"
)


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX file of one product."""
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    weights = helper.make_tensor("w", kind, (512, 512), [1.0] * (512 * 512))
    ends = [helper.make_tensor_value_info(name, kind, (256, 512)) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "product", ends[:1], ends[1:], [weights])
    path = tmp_path_factory.mktemp("onnx") / "product.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.mark.parametrize("library", CALLS)
def test_threads_sleep_between_batches(library: str, product: Path) -> None:
    pytest.importorskip(library)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OPENBLAS_", "GOMP_", "OMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", CALLS[library] + BURNT, str(product)],
        env=worker_environment(clean),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert float(done.stdout) < PAUSE_S / 4  # it was half of it and more


def test_what_the_operator_says_counts_more() -> None:
    found = worker_environment({"OPENBLAS_THREAD_TIMEOUT": "26", "HOME": "/h"})
    assert found["OPENBLAS_THREAD_TIMEOUT"] == "26"
    assert found["HOME"] == "/h"
    assert found["GOMP_SPINCOUNT"] == "10000"


def test_a_wait_policy_of_the_operator_is_about_all_openmp_threads() -> None:
    found = worker_environment({"OMP_WAIT_POLICY": "active"})
    assert not {"GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & found.keys()
    assert "OPENBLAS_THREAD_TIMEOUT" in found
