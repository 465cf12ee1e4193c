"""What `doctor --model` says a model will take, against what its process really took at most."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from bench.engine.models import write_checkpoint

from tests.support.tiny_checkpoints import make_llama_dir

# Fills every block of the cache and says the high-water mark; in a process of its own, for that mark is the process's.
FILL = """
import re, sys
from millpond import LLM, SamplingParams
path, dtype, cache = sys.argv[1:]
with LLM(path, dtype=dtype, cache_bytes=cache, threads=2, prefix=False) as llm:
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


def predicted_and_real(directory: Path, dtype: str, cache: str) -> tuple[int, int]:
    flags = ["--model", str(directory), "--dtype", dtype, "--cache.bytes", cache, "--threads", "2"]
    said = json.loads(run("-m", "millpond", "doctor", "--json", "--quick", *flags))["footprint"]
    return said["peak"], int(run("-c", FILL, str(directory), dtype, cache))


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_the_peak_of_a_tiny_model_is_known_before_it_loads(tmp_path: Path, dtype: str) -> None:
    said, real = predicted_and_real(make_llama_dir(tmp_path / "tiny"), dtype, "4MiB")
    assert said == pytest.approx(real, rel=0.15)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_the_peak_of_a_whole_model_is_known_before_it_loads(tmp_path: Path, dtype: str) -> None:
    said, real = predicted_and_real(write_checkpoint("smollm2-135m", tmp_path / "smol"), dtype, "64MiB")
    assert said == pytest.approx(real, rel=0.15)
