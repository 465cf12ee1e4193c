"""From the start of the server process to the first streamed token: a later start, and the very first.

    python -m bench.serving.cold_start [--model NAME_OR_PATH] [--rounds 3] [--json FILE] [-- SERVE FLAGS]

Starts `millpond serve` on a free port, sends one streamed chat or completion request as soon as the port says it is
ready, and stops the server again. `later` finds the packed weights of an earlier start; `very_first` has
an empty cache directory and a model that the page cache does not hold. Prints medians, what the server says of its
stages, and the most memory that the engine's process took. Bars: <= 3 s and <= 20 s.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from millpond.inference.weights.catalog import resolve_model

PROMPT = "Name three rivers."


def first_token(model: str, cache: str, flags: list[str]) -> dict[str, Any]:
    """One start: seconds from process start to the first text, the server's own account, the engine's peak."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "millpond", "serve", model, "--port", "0", *flags]
    environment = os.environ | {"MILLPOND_CACHE": cache}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert server.stdout is not None
    assert server.stderr is not None
    try:
        url = next(match[0] for line in server.stdout if (match := re.search(r"http://\S+", line)))
        ready = time.perf_counter() - start
        body = {"stream": True, "max_tokens": 4, "prompt": PROMPT, "ignore_eos": True, "model": ""}
        with urllib.request.urlopen(f"{url}/v1/models", timeout=60) as answer:
            body["model"] = json.load(answer)["data"][0]["id"]
        request = urllib.request.Request(
            f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as events:
            for event in events:
                if event.startswith(b"data: {") and json.loads(event[6:])["choices"][0].get("text"):
                    break
        seconds = time.perf_counter() - start
        peak = max(map(peak_bytes, children(server.pid)), default=0)
    finally:
        server.send_signal(signal.SIGTERM)
        account = server.stderr.read()
        server.wait(30)
    stages = next((line for line in account.splitlines() if line.startswith("Loaded in")), "")
    return {"seconds": seconds, "ready": ready, "stages": stages, "engine_peak_bytes": peak}


def children(pid: int) -> list[int]:
    """The processes that a process started."""
    found = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for path in found for child in path.read_text().split()]


def peak_bytes(pid: int) -> int:
    """The most memory that a process had in RAM."""
    found = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) * 1024 if found else 0


def forget(model: str) -> None:
    """Takes a model's files out of the page cache."""
    path = Path(model)
    for file in [path] if path.is_file() else path.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of the rounds, and the last account."""
    return {
        "seconds_to_first_token": round(statistics.median(run["seconds"] for run in runs), 2),
        "all": [round(run["seconds"], 2) for run in runs],
        "seconds_to_ready": round(statistics.median(run["ready"] for run in runs), 2),
        "engine_peak_bytes": max(run["engine_peak_bytes"] for run in runs),
        "stages": runs[-1]["stages"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("flags", nargs="*", help="for `millpond serve`, behind --")
    args = parser.parse_args()
    model = resolve_model(args.model)
    very_first, later = [], []
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory(prefix="millpond-start-") as cache:
            forget(model)
            very_first.append(first_token(model, cache, args.flags))
            later.append(first_token(model, cache, args.flags))
    result = {"model": model, "flags": args.flags, "very_first": summary(very_first), "later": summary(later)}
    print(json.dumps(result, indent=2))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
