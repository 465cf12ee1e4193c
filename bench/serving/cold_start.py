"""From the start of the server process to the first streamed token, with the model on a warm disk.

    python -m bench.serving.cold_start [--model NAME_OR_PATH] [--rounds 3] [--json FILE]

Starts `millpond serve` on a free port, sends one streamed chat request as soon as the port says it is ready, and stops
the server again. Prints the median and what the server says of its stages. Bar: <= 5 s.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path


def first_token(model: str) -> tuple[float, str]:
    """Seconds from process start to the first content, and the server's own account."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "millpond", "serve", model, "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert server.stdout is not None
    assert server.stderr is not None
    try:
        url = next(match[0] for line in server.stdout if (match := re.search(r"http://\S+", line)))
        body = {"stream": True, "max_tokens": 4, "messages": [{"role": "user", "content": "Name three rivers."}]}
        request = urllib.request.Request(
            f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as events:
            for event in events:
                if event.startswith(b"data: {") and json.loads(event[6:])["choices"][0]["delta"].get("content"):
                    break
        seconds = time.perf_counter() - start
    finally:
        server.send_signal(signal.SIGTERM)
        account = server.stderr.read()
        server.wait(30)
    return seconds, next((line for line in account.splitlines() if line.startswith("Loaded in")), "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    first_token(args.model)  # fetches the model and warms the disk
    runs = [first_token(args.model) for _ in range(args.rounds)]
    result = {
        "seconds_to_first_token": round(statistics.median(seconds for seconds, _ in runs), 2),
        "all": [round(seconds, 2) for seconds, _ in runs],
        "stages": runs[-1][1],
    }
    print(json.dumps(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
