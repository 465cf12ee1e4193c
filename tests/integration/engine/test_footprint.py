"""What `doctor --model` says a model will take, against what its process really took at most."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bench.engine.models import write_checkpoint

from tests.support.tiny_checkpoints import make_llama_dir

# Fills every block of the cache and says the high-water mark; in a process of its own, for that mark is the process's.
FILL = """
import json, re, sys
from millpond import LLM, SamplingParams
path, dtype, cache, packed, more = sys.argv[1:]
more = {f"speculation_{name}": value for name, value in json.loads(more).items()}
with LLM(path, dtype=dtype, cache_bytes=cache, threads=2, prefix=False, model_packed_bytes=packed, **more) as llm:
    tokens = llm.info.num_blocks * llm.info.block_size
    length = min(llm.info.max_model_len, 512)
    count = tokens // length
    prompts = [[5 + (7 * row + place) % 300 for place in range(length - 2)] for row in range(count)]
    llm.generate(prompts, SamplingParams(temperature=0, max_tokens=2, ignore_eos=True), use_tqdm=False)
    print(int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) * 1024)
"""


def run(*arguments: str) -> str:
    """A child's output."""
    return subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True).stdout


def predict(directory: Path, dtype: str, cache: str, packed: str, **speculation: str) -> dict[str, Any]:
    """What the doctor says."""
    flags = ["--model", str(directory), "--dtype", dtype, "--cache.bytes", cache, "--threads", "2"]
    flags += ["--model.packed_bytes", packed]
    flags += [part for name, value in speculation.items() for part in (f"--speculation.{name}", value)]
    document = json.loads(run("-m", "millpond", "doctor", "--json", "--quick", *flags))
    return dict(document["footprint"])


def real_peak(directory: Path, dtype: str, cache: str, packed: str, **speculation: str) -> int:
    """What a process took."""
    return int(run("-c", FILL, str(directory), dtype, cache, packed, json.dumps(speculation)))


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.stress), "int8", "int4"])
def test_the_peak_of_a_tiny_model_is_known_before_it_loads(tmp_path: Path, dtype: str) -> None:
    directory = make_llama_dir(tmp_path / "tiny")
    said = predict(directory, dtype, "4MiB", "1GiB")
    assert said["weights_from"] == "memory"
    assert said["peak"] == pytest.approx(real_peak(directory, dtype, "4MiB", "1GiB"), rel=0.15)


def test_the_peaks_of_first_and_second_start_are_known(tmp_path: Path) -> None:
    directory = write_checkpoint("smollm2-135m", tmp_path / "smol")
    for start in ("first start", "packed file"):
        said = predict(directory, "int8", "64MiB", "1GiB")
        assert said["weights_from"] == start
        assert said["mapped_file"] == 0
        assert said["peak"] == pytest.approx(real_peak(directory, "int8", "64MiB", "1GiB"), rel=0.15)


def test_the_peak_of_a_start_that_keeps_nothing_is_known(tmp_path: Path) -> None:
    directory = write_checkpoint("smollm2-135m", tmp_path / "smol")
    said = predict(directory, "bfloat16", "64MiB", "0")
    assert said["weights_from"] == "memory"
    assert said["peak"] == pytest.approx(real_peak(directory, "bfloat16", "64MiB", "0"), rel=0.15)


def test_the_peak_with_a_draft_model_counts_both(tmp_path: Path) -> None:
    directory = str(write_checkpoint("smollm2-135m", tmp_path / "smol"))
    alone = predict(Path(directory), "int8", "64MiB", "1GiB")
    flags = {"draft_model": directory, "draft_dtype": "bfloat16"}
    said = predict(Path(directory), "int8", "64MiB", "1GiB", **flags)
    assert said["draft"] > 2 * alone["weights"]["int8"]
    assert said["peak"] == pytest.approx(real_peak(Path(directory), "int8", "64MiB", "1GiB", **flags), rel=0.15)
