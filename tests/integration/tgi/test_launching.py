"""The launcher's command as a user's script has it, and a shutdown that lets answers finish."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

COMMAND = [sys.executable, "-c", "from millpond.cli.tgi_launcher import main; main()"]


@contextmanager
def launched(*flags: str, **variables: str) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """A launcher that is connected, the URL of its port, and the lines it printed until then."""
    process = subprocess.Popen(
        [*COMMAND, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **variables},
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    errors: list[str] = []
    reader = threading.Thread(target=lambda: errors.extend(process.stderr or ()), daemon=True)
    reader.start()
    lines: list[str] = []
    try:
        for line in process.stdout:
            lines.append(line)
            if found := re.match(r"Connected: TGI is at (\S+)", line):
                yield process, f"http://{found[1]}", errors
                return
        raise AssertionError(f"it ended: {lines} {errors}")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
        reader.join(30)
        process.stdout.close()
        process.stderr.close()


def test_a_launchers_script_starts_a_server_and_a_signal_lets_answers_finish(checkpoint: Path) -> None:
    flags = ["--model-id", str(checkpoint), "-p", "0", "--max-total-tokens", "900", "--num-shard", "1"]
    with launched(*flags, MAX_BEST_OF="5", DTYPE="float16", API_KEY="secret") as (process, url, errors):
        info = httpx.get(f"{url}/info", timeout=60).json()
        assert (info["model_id"], info["max_total_tokens"], info["max_best_of"]) == (str(checkpoint), 900, 5)
        body = {"inputs": "x", "parameters": {"max_new_tokens": 800}}
        refused = httpx.post(f"{url}/generate", json=body, timeout=60)
        assert (refused.status_code, refused.content) == (401, b"")

        answers: list[Any] = []
        headers = {"Authorization": "Bearer secret"}

        def ask() -> None:
            with httpx.stream("POST", f"{url}/generate_stream", json=body, headers=headers, timeout=120) as stream:
                for line in stream.iter_lines():
                    answers.append(line)
                    begun.set()

        begun = threading.Event()
        asking = threading.Thread(target=ask)
        asking.start()
        assert begun.wait(120)
        process.send_signal(signal.SIGTERM)
        asking.join(120)
        assert process.wait(120) == 0
        assert len([line for line in answers if line.startswith("data:{")]) in range(1, 801)
        assert "generated_text" in answers[-2]
    assert any(line.startswith("--num-shard changes nothing") for line in errors)
    assert any(line.startswith("--dtype float16 is taken as auto") for line in errors)
