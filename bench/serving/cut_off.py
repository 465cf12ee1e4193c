"""1,000 streamed requests by 64 clients over HTTP, a fifth of them cut off mid-stream: nothing lost, garbled or leaked.

    python -m bench.serving.cut_off [--model NAME_OR_PATH] [--requests 1000] [--json FILE]

Starts `millpond serve` on a free port. Every request is greedy, so each of the 20 prompts has one right answer, taken
from a request that ran alone; a whole stream must equal it, a cut-off one must be its beginning. Afterwards all blocks
must be free again, and memory must not have grown by more than 5 % since the first tenth of the requests.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path

CLIENTS, PROMPTS, TOKENS = 64, 20, 48


class Server:
    """A `millpond serve` of our own."""

    def __init__(self, model: str) -> None:
        command = [sys.executable, "-m", "millpond", "serve", model, "--port", "0"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        match = next(m for line in self.process.stdout if (m := re.search(r"http://([\d.]+):(\d+)", line)))
        self.url, self.host, self.port = match[0], match[1], int(match[2])

    def metric(self, name: str) -> float:
        """A metric without labels."""
        page = urllib.request.urlopen(f"{self.url}/metrics").read().decode()
        return next(float(line.split()[1]) for line in page.splitlines() if line.startswith(f"{name} "))

    def memory_kb(self) -> int:
        """Resident memory of gateway and engine."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return sum(
            int(line.split()[1])
            for process in [str(pid), *children]
            for line in Path(f"/proc/{process}/status").read_text().splitlines()
            if line.startswith("VmRSS")
        )

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


async def stream(server: Server, prompt: str, cut_after: int | None) -> str:
    """Text of one request; reads `cut_after` events and hangs up when that is set."""
    body = json.dumps({"prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True, "stream": True})
    reader, writer = await asyncio.open_connection(server.host, server.port)
    writer.write(
        f"POST /v1/completions HTTP/1.1\r\nHost: {server.host}:{server.port}\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
    )
    await writer.drain()
    text, events = "", 0
    while line := await reader.readline():
        if line.startswith(b"HTTP/1.1 ") and b" 200 " not in line:
            raise RuntimeError(line.decode())
        if not line.startswith(b"data: {"):
            continue
        choice = json.loads(line[6:])["choices"][0]
        text += choice["text"]
        events += 1
        if events == cut_after:
            break
    writer.close()
    return text


async def run(server: Server, num_requests: int) -> dict[str, object]:
    prompts = [f"Chapter {i}. The {word} of the " for i, word in enumerate(["river", "mill", "pond", "wheel"] * 5)]
    expected = [await stream(server, prompt, None) for prompt in prompts]
    generator = random.Random(1)
    plan = [
        (generator.randrange(PROMPTS), generator.randrange(1, 20) if i % 5 == 0 else None) for i in range(num_requests)
    ]
    seen: Counter[str] = Counter()
    early_memory = 0

    async def client() -> None:
        nonlocal early_memory
        while plan:
            index, cut_after = plan.pop()
            text = await stream(server, prompts[index], cut_after)
            if cut_after is None:
                seen["whole" if text == expected[index] else "garbled"] += 1
            else:
                seen["cut off" if expected[index].startswith(text) else "garbled"] += 1
            if not early_memory and seen.total() >= num_requests // 10:
                early_memory = server.memory_kb()

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    seconds = time.perf_counter() - start
    for _ in range(100):
        if server.metric("millpond_cache_free_blocks") == server.metric("millpond_cache_blocks"):
            break
        await asyncio.sleep(0.1)
    blocks = server.metric("millpond_cache_blocks")
    return {
        **seen,
        "seconds": round(seconds, 1),
        "blocks_missing": blocks - server.metric("millpond_cache_free_blocks"),
        "memory_growth": round(server.memory_kb() / early_memory - 1, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    server = Server(args.model)
    try:
        result = asyncio.run(run(server, args.requests))
    finally:
        status = server.stop()
    result["exit_status"] = status
    is_good = result.get("garbled", 0) == 0 and result["blocks_missing"] == 0 and status == 0
    result["holds"] = is_good and float(str(result["memory_growth"])) <= 0.05
    print(json.dumps(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    sys.exit(not result["holds"])


if __name__ == "__main__":
    main()
