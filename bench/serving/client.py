"""A light streaming client of OpenAI-style servers: what it takes itself is taken from the server on the same box.

Prompts go as token ids (or as words, for servers that refuse ids), greedy, past the end-of-sequence token; a connection
a request. A closed loop: every client sends its next request when the last one has ended. Called by compare.py.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass, field

WORDS = ("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state")


class ServerError(Exception):
    """A server answered with an error, or not at all."""


@dataclass(frozen=True, slots=True)
class Load:
    """What to send, and where."""

    port: int
    model: str
    clients: int
    per_client: int = 2
    prompt: int = 128
    output: int = 128
    vocabulary: int = 30000
    as_words: bool = False
    timeout_s: float = 600.0


@dataclass(slots=True)
class Answer:
    """One request as its client saw it; times in seconds of one clock."""

    start: float
    arrivals: list[float] = field(default_factory=list)
    tokens: int = 0


async def ask(load: Load, prompt: list[int] | str, output: int) -> Answer:
    """Sends one request and reads its stream to the end.

    Raises:
        ServerError: The answer is no stream of completions.
    """
    body = {"model": load.model, "prompt": prompt, "max_tokens": output, "temperature": 0, "stream": True}
    payload = json.dumps({**body, "ignore_eos": True, "stream_options": {"include_usage": True}}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", load.port)
    try:
        answer = Answer(time.perf_counter())
        head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{load.port}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Connection: close\r\nContent-Length: {len(payload)}\r\n\r\n".encode() + payload)
        status = await reader.readline()
        if b" 200" not in status:
            raise ServerError((status + await reader.read(1000)).decode(errors="replace"))
        counted = 0
        while line := await reader.readline():
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise ServerError(str(event["error"])[:500])
            choices = event.get("choices")
            if choices and (choices[0].get("text") or not choices[0].get("finish_reason")):
                answer.arrivals.append(time.perf_counter())
                counted += 1
            if event.get("usage"):
                answer.tokens = int(event["usage"].get("completion_tokens", 0))
        answer.tokens = answer.tokens or counted
        if not answer.arrivals:
            raise ServerError("the stream held no tokens")
        return answer
    finally:
        writer.close()


async def run_load(load: Load) -> tuple[float, list[Answer]]:
    """All requests; returns the seconds of the whole and the answers.

    Raises:
        ServerError: A request failed.
        TimeoutError: They did not end in `load.timeout_s`.
    """
    chance = random.SystemRandom()
    answers: list[Answer] = []

    def make_prompt() -> list[int] | str:
        if load.as_words:
            return " ".join(chance.choices(WORDS, k=load.prompt))
        return [chance.randrange(100, load.vocabulary) for _ in range(load.prompt)]

    async def client() -> None:
        for _ in range(load.per_client):
            answers.append(await ask(load, make_prompt(), load.output))

    await ask(load, make_prompt(), 4)
    start = time.perf_counter()
    async with asyncio.timeout(load.timeout_s):
        await asyncio.gather(*(client() for _ in range(load.clients)))
    return time.perf_counter() - start, answers
