"""A language model through every protocol, against the same engine asked in process.

    python -m bench.serving.protocols [--model NAME_OR_PATH] [--clients 8] [--requests 4] [--rounds 5] [--json FILE]

Starts `millpond serve` with all its ports and a second engine of the same settings in this process. In each round every
way is measured once, one after the other, so that a slow minute of the machine meets all of them; the engine that is
not asked sleeps. All ways get the same prompts and decode greedily. A protocol is compared with the median protocol of
the same round, and the median over the rounds is what counts: many short rounds (--requests 1 --max-tokens 32 --rounds
15) tell more than a few long ones. Also prints what a token costs the server's process. Bars: throughput within 3 % of
each other, time to the first token within 1 ms, the same text.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import operator
import os
import re
import signal
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import psutil

from millpond.api.request import Request, SamplingParams
from millpond.config.load import make_config
from millpond.inference.engine.client import AsyncEngine
from millpond.serve.proto import inference_pb2 as pb

FLAGS = ("--port", "--tgi.port", "--triton.http_port", "--triton.grpc_port", "--mindspore.http_port")
TEXT = "The mill by the pond turns slowly while the water of many rivers runs past it and children name them. " * 2


@dataclass(slots=True)
class Ask:
    """One request's result: its text, and seconds to its first piece."""

    text: str = ""
    first_s: float = 0.0


@dataclass(slots=True)
class Way:
    """One way to the model, and what was measured on it."""

    name: str
    stream: Callable[[str, int], AsyncIterator[str]]
    rates: list[float] = field(default_factory=list)
    firsts_s: list[float] = field(default_factory=list)
    first_of_round_s: list[float] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    costs_us: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Load:
    """What every way is asked in a round, and the process whose time it takes."""

    prompts: list[str]
    clients: int
    max_tokens: int
    server: psutil.Process


async def measure(way: Way, load: Load, num_tokens: int | None) -> int:
    """Asks all prompts once; returns how many tokens the texts have, which the first way counts for all."""
    waiting = list(load.prompts)
    counts: list[int] = []

    async def client() -> None:
        while waiting:
            prompt = waiting.pop()
            began = time.perf_counter()
            asked = Ask()
            pieces = 0
            async for piece in way.stream(prompt, load.max_tokens):
                if not pieces:
                    asked.first_s = time.perf_counter() - began
                pieces += 1
                asked.text += piece
            counts.append(pieces)
            way.firsts_s.append(asked.first_s)
            way.texts[prompt] = asked.text

    before_s = _cpu_s(load.server)
    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(load.clients)))
    elapsed = time.perf_counter() - began
    total = num_tokens or sum(counts)
    way.first_of_round_s.append(statistics.median(way.firsts_s[-len(load.prompts) :]))
    way.rates.append(total / elapsed)
    way.costs_us.append((_cpu_s(load.server) - before_s) * 1e6 / total)
    return total


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def in_process(engine: AsyncEngine) -> Way:
    """The engine without a protocol; tokenising counts, as it does in a server."""
    numbers = iter(range(10**9))

    async def stream(prompt: str, max_tokens: int) -> AsyncIterator[str]:
        tokens = engine.text.tokenizer.encode(prompt)
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens)
        async for event in engine.generate(Request(f"r{next(numbers)}", tokens, params)):
            for _ in event.token_ids[1:]:  # events that were merged count as the tokens they are
                yield ""
            yield event.text

    return Way("engine", stream)


def openai(address: str, model: str) -> Way:
    def body(prompt: str, count: int) -> dict[str, Any]:
        return {"model": model, "prompt": prompt, "max_tokens": count, "temperature": 0, "stream": True}

    return Way("openai", _events(address, "/v1/completions", body, lambda event: event["choices"][0]["text"]))


def tgi(address: str) -> Way:
    def body(prompt: str, count: int) -> dict[str, Any]:
        return {"inputs": prompt, "parameters": {"max_new_tokens": count, "do_sample": False}}

    def text(event: dict[str, Any]) -> str:
        return "" if event["token"]["special"] else str(event["token"]["text"])

    return Way("tgi", _events(address, "/generate_stream", body, text))


def triton_http(address: str, model: str) -> Way:
    def body(prompt: str, count: int) -> dict[str, Any]:
        return {"text_input": prompt, "stream": True, "sampling_parameters": _sampling(count)}

    path = f"/v2/models/{model}/generate_stream"
    return Way("triton http", _events(address, path, body, lambda event: event["text_output"]))


def mindspore(address: str, model: str) -> Way:
    def body(prompt: str, count: int) -> dict[str, Any]:
        return {"instances": [{"text_input": prompt, "sampling_parameters": _sampling(count)}]}

    def text(event: dict[str, Any]) -> str:
        (instance,) = event["instances"]
        return str(instance["text_output"])

    return Way("mindspore", _events(address, f"/model/{model}:generated_stream", body, text))


def triton_grpc(channel: grpc.aio.Channel, model: str) -> Way:
    call = channel.stream_stream(
        "/inference.GRPCInferenceService/ModelStreamInfer",
        request_serializer=pb.ModelInferRequest.SerializeToString,
        response_deserializer=pb.ModelStreamInferResponse.FromString,
    )

    async def stream(prompt: str, max_tokens: int) -> AsyncIterator[str]:
        request = pb.ModelInferRequest(model_name=model)
        for name, value in (("text_input", prompt), ("sampling_parameters", _sampling(max_tokens))):
            request.inputs.add(name=name, datatype="BYTES", shape=[1])
            content = value.encode()
            request.raw_input_contents.append(len(content).to_bytes(4, "little") + content)
        request.inputs.add(name="stream", datatype="BOOL", shape=[1])
        request.raw_input_contents.append(b"\x01")
        async for answer in call(iter([request])):
            assert not answer.error_message, answer.error_message
            yield answer.infer_response.raw_output_contents[0][4:].decode()

    return Way("triton grpc", stream)


def _sampling(max_tokens: int) -> str:
    return json.dumps({"temperature": 0, "max_tokens": max_tokens})


def _events(
    address: str,
    path: str,
    body: Callable[[str, int], dict[str, Any]],
    text: Callable[[dict[str, Any]], str],
) -> Callable[[str, int], AsyncIterator[str]]:
    """A stream of server-sent events over a connection of its own: no pool and no library is measured."""
    host, _, port = address.rpartition(":")

    async def stream(prompt: str, max_tokens: int) -> AsyncIterator[str]:
        reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 20)
        content = json.dumps(body(prompt, max_tokens)).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Connection: close\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)
        try:
            status = await reader.readline()
            assert b" 200 " in status, (path, status, await reader.read())
            while line := await reader.readline():
                if not line.startswith(b"data:") or line.strip() == b"data: [DONE]":
                    continue  # heads, chunk sizes, empty lines
                event = json.loads(line[5:])
                if event.get("choices") == []:
                    continue
                yield text(event)
        finally:
            writer.close()

    return stream


@contextlib.asynccontextmanager
async def serving(model: str, settings: list[str]) -> AsyncIterator[dict[str, str]]:
    """The ports of a running server by name; "openai" is the URL's, "model" the name of the model."""
    command = [sys.executable, "-m", "millpond", "serve", model, *(part for flag in FLAGS for part in (flag, "0"))]
    server = await asyncio.create_subprocess_exec(*command, *settings, stdout=asyncio.subprocess.PIPE)
    assert server.stdout is not None
    ports: dict[str, str] = {"pid": str(server.pid)}
    try:
        async for line in server.stdout:
            if match := re.match(rb"Millpond is serving (\S+) at http://(\S+)", line):
                ports |= {"model": match[1].decode(), "openai": match[2].decode()}
                break
            if match := re.match(rb"(.+) is at (\S+)", line):
                ports[match[1].decode()] = match[2].decode()
        yield ports
    finally:
        with contextlib.suppress(ProcessLookupError):
            server.send_signal(signal.SIGTERM)
        await server.wait()


def report(ways: list[Way]) -> Iterator[dict[str, Any]]:
    """A row a way, against the first and against the median protocol of each round."""
    base = ways[0]
    rates = [statistics.median(round) for round in zip(*(way.rates for way in ways[1:]), strict=True)]
    firsts = [statistics.median(round) for round in zip(*(way.first_of_round_s for way in ways[1:]), strict=True)]
    for way in ways:
        rate, first = statistics.median(way.rates), statistics.median(way.firsts_s)
        yield {
            "way": way.name,
            "tokens_per_s": round(rate, 2),
            "of_engine": round(rate / statistics.median(base.rates), 4),
            "of_median_protocol": round(statistics.median(map(operator.truediv, way.rates, rates)), 4),
            "first_token_ms": round(first * 1e3, 2),
            "first_token_off_median_ms": round(
                statistics.median(map(operator.sub, way.first_of_round_s, firsts)) * 1e3, 2
            ),
            "first_token_p10_ms": round(sorted(way.firsts_s)[len(way.firsts_s) // 10] * 1e3, 2),
            "later_ms": round((first - statistics.median(base.firsts_s)) * 1e3, 2),
            "server_us_a_token": round(statistics.median(way.costs_us), 1),
            "same_text": way.texts == base.texts,
        }


async def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    # Without prefix reuse, or the way that asks a prompt first would compute it for the others.
    settings = {"runtime.threads": args.threads, "cache.bytes": args.cache_bytes, "cache.prefix": "off"}
    given = {name: value for name, value in settings.items() if value is not None}
    flags = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    async with serving(args.model, flags) as ports:
        engine = await AsyncEngine.start(make_config({"model.path": args.model, **given}))
        async with grpc.aio.insecure_channel(ports["Triton gRPC"]) as channel:
            name = ports["model"]
            ways = [
                in_process(engine),
                openai(ports["openai"], name),
                tgi(ports["TGI"]),
                triton_http(ports["Triton HTTP"], name),
                triton_grpc(channel, name),
                mindspore(ports["MindSpore REST"], name),
            ]
            try:
                await measure_all(ways, args, psutil.Process(int(ports["pid"])))
            finally:
                await engine.close()
    return list(report(ways))


async def measure_all(ways: list[Way], args: argparse.Namespace, server: psutil.Process) -> None:
    """One round unmeasured, then the measured ones; the engine first, which counts tokens, the others in turn."""
    engine, *others = ways
    for number in range(args.rounds + 1):
        prompts = [_prompt(number, client) for client in range(args.clients * args.requests)]
        load = Load(prompts, args.clients, args.max_tokens, server)
        num_tokens = await measure(engine, load, None)
        first = number % len(others)
        for way in [*others[first:], *others[:first]]:
            await measure(way, load, num_tokens)
        if number == 0:
            for way in ways:
                way.rates.clear()
                way.firsts_s.clear()
                way.first_of_round_s.clear()
                way.costs_us.clear()


def _prompt(number: int, client: int) -> str:
    return f"{number}.{client}: {TEXT[client:]}{TEXT[:client]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=4, help="of each client, a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--cache-bytes", default="256MiB")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if os.cpu_count() == 1:
        print("One core serves client and server here: every protocol's own work counts double.", file=sys.stderr)
    rows = asyncio.run(run(args))
    for row in rows:
        print(json.dumps(row))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
