"""Models that crash, hang or leave: their requests get an error, they are started again, and others never notice."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from millpond.serve.servables.errors import ServableError
from millpond.serve.workers.worker import WorkerLimits
from tests.integration.backends.conftest import Bench, MakeBench, request

CONFIG = """
name: "%s" backend: "python"
input [ { name: "IN" data_type: TYPE_INT32 dims: [ -1 ] } ]
output [ { name: "OUT" data_type: TYPE_INT32 dims: [ -1 ] } ]
"""
TROUBLE = """
import os, signal, time, threading
import triton_python_backend_utils as pb
class TritonPythonModel:
    def execute(self, requests):
        number = int(requests[0].inputs()[0].as_numpy()[0])
        if number == 1:
            os.kill(os.getpid(), signal.SIGSEGV)
        if number == 2:
            os._exit(7)
        if number == 3:
            while True:
                pass
        if number == 4:
            raise SystemExit("leaving")
        return [pb.InferenceResponse([pb.Tensor("OUT", r.inputs()[0].as_numpy())]) for r in requests]
"""


def numbers(*values: int) -> dict[str, np.ndarray]:
    return {"IN": np.array(values, np.int32)}


@pytest.mark.parametrize(("number", "how"), [(1, "was killed by SIGSEGV"), (2, "exited with status 7")])
async def test_a_crash_is_an_error_of_its_request_and_the_model_comes_back(bench: Bench, number: int, how: str) -> None:
    await bench.add("crash", CONFIG % "crash", TROUBLE)
    await bench.add("calm", CONFIG % "calm", TROUBLE)
    with pytest.raises(ServableError) as caught:
        await bench.infer("crash", numbers(number))
    assert (caught.value.code, caught.value.message) == ("unavailable", f"The process of 'crash_0_0' {how}.")
    assert (await bench.infer("calm", numbers(5))).outputs["OUT"].array.tolist() == [5]
    answer = await bench.infer_when_up("crash", numbers(6))
    assert answer.outputs["OUT"].array.tolist() == [6]


async def test_an_endless_loop_is_stopped_and_the_model_comes_back(make_bench: MakeBench) -> None:
    bench = make_bench(WorkerLimits(silence_timeout_s=0.5))
    await bench.add("loop", CONFIG % "loop", TROUBLE)
    with pytest.raises(ServableError, match=r"gave no sign for 0\.5 seconds and was stopped") as caught:
        await bench.infer("loop", numbers(3))
    assert caught.value.code == "unavailable"
    answer = await bench.infer_when_up("loop", numbers(8))
    assert answer.outputs["OUT"].array.tolist() == [8]


async def test_a_model_that_wants_to_exit_only_fails_its_request(bench: Bench) -> None:
    await bench.add("leave", CONFIG % "leave", TROUBLE)
    with pytest.raises(ServableError, match="SystemExit: leaving"):
        await bench.infer("leave", numbers(4))
    assert (await bench.infer("leave", numbers(5))).outputs["OUT"].array.tolist() == [5]


async def test_a_model_that_loads_for_ever_is_given_up(make_bench: MakeBench) -> None:
    bench = make_bench(WorkerLimits(load_timeout_s=1.0))
    with pytest.raises(ServableError, match="'slow_0_0' did not load within 1 seconds"):
        await bench.add("slow", CONFIG % "slow", "import time\nclass TritonPythonModel:\n    time.sleep(600)\n")


async def test_unloading_leaves_no_process(bench: Bench) -> None:
    await bench.add("gone", CONFIG % "gone", TROUBLE)
    pid = bench.servables.find("gone").replicas[0].instance.worker.pid  # type: ignore[attr-defined]
    assert _lives(pid)
    await bench.servables.remove("gone")
    await bench.servables.settled()
    assert not _lives(pid)


def test_a_worker_dies_with_its_gateway(tmp_path: Path) -> None:
    program = textwrap.dedent("""
        import asyncio, sys
        from pathlib import Path
        from millpond.serve.backends.python import PythonBackend
        from millpond.serve.backends.worker_instance import WorkerSurroundings
        from millpond.serve.repository.triton_config import parse_config_text
        from millpond.serve.servables.backend import ModelFolder
        from millpond.serve.servables.config import InstanceGroup
        async def main():
            folder = ModelFolder(Path(sys.argv[1]), 1)
            config = parse_config_text(Path(sys.argv[1], "config.pbtxt").read_text(), "config.pbtxt")
            backend = PythonBackend(WorkerSurroundings())
            instance = await backend.load(config, folder, InstanceGroup("g"), 0)
            print(instance.worker.pid, flush=True)
            await asyncio.sleep(600)
        asyncio.run(main())
    """)
    model = tmp_path / "orphan"
    (model / "1").mkdir(parents=True)
    (model / "1" / "model.py").write_text(TROUBLE)
    (model / "config.pbtxt").write_text(CONFIG % "orphan")
    with subprocess.Popen([sys.executable, "-c", program, str(model)], stdout=subprocess.PIPE, text=True) as gateway:
        assert gateway.stdout is not None
        worker = int(gateway.stdout.readline())
        assert _lives(worker)
        gateway.send_signal(signal.SIGKILL)
    until = time.monotonic() + 60
    while _lives(worker) and time.monotonic() < until:
        time.sleep(0.02)
    assert not _lives(worker)


def _lives(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    os.kill(pid, 0)
    return status != "Z"


async def test_tensors_that_find_no_room_in_shared_memory_still_pass(make_bench: MakeBench) -> None:
    bench = make_bench(WorkerLimits(arena_bytes=1 << 16, inline_bytes=64))
    await bench.add("tight", CONFIG % "tight", TROUBLE)
    for size in (10, 10_000, 1_000_000):
        array = np.arange(9, 9 + size, dtype=np.int32)
        answers = await asyncio.gather(*(bench.infer("tight", {"IN": array}) for _ in range(3)))
        for answer in answers:
            np.testing.assert_array_equal(answer.outputs["OUT"].array, array)


async def test_a_crash_in_a_stream_ends_it_with_an_error(bench: Bench) -> None:
    await bench.add(
        "cut",
        CONFIG % "cut" + "model_transaction_policy { decoupled: True }",
        """
        import os
        import triton_python_backend_utils as pb
        class TritonPythonModel:
            def execute(self, requests):
                sender = requests[0].get_response_sender()
                for _ in range(3):
                    sender.send(pb.InferenceResponse([pb.Tensor("OUT", requests[0].inputs()[0].as_numpy())]))
                os._exit(5)
        """,
    )
    seen = [response async for response in bench.servables.stream(request("cut", numbers(1)))]
    assert [response.error is None for response in seen] == [True, True, True, False]
    assert seen[-1].final
    assert seen[-1].error is not None
    assert (seen[-1].error.code, seen[-1].error.message) == (
        "unavailable",
        "The process of 'cut_0_0' exited with status 5.",
    )
