"""A language model through every protocol of one server: do they give the same tokens, as fast, and as soon?

    python -m bench.serving.protocols [--model NAME_OR_PATH] [--clients 8] [--max-tokens 24] [--seconds 50]

Starts `millpond serve` with all its ports. In each round every way is measured once, in an order that turns from round
to round, so that a slow moment of the machine meets all of them; all get the same prompts and decode greedily:

- first token, alone: requests one at a time, another way each time, while the server has nothing else to do;
- first token in a burst, throughput, and time between tokens: `--clients` requests at once. A stall of the machine is
  in the throughput of the round it falls into; the median time between two tokens is what a step costs without it.

Prompts are those whose answers do not end early: the same in every run, and of each way in a round. What counts of two
ways is their difference round by round. It is given as an interval that holds the true one in 95 of 100 cases, from
rounds drawn again and again: "apart" of all ways is `at_least` where an interval ends nearest to 0 (0: no two ways are
surely apart) and `at_most` where one ends furthest from it. A step's time wanders by a fifth from one to the next on a
shared machine, whoever asks, so `at_most` falls with the root of the number of rounds: `--pool` reports on the rounds
of several runs' `--json` files together. One way is there twice, to show what no difference looks like; it counts for
nothing. Bars: throughput within 3 % of each other, time to the first token within 1 ms, the same text.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import re
import signal
import statistics
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.serving import protocol_clients as clients
from bench.serving.protocol_clients import Dialect, Line
from bench.serving.protocol_ports import all_dialects
from bench.serving.protocol_rounds import compared, off_mean, processor_s, turned

PORTS = ("--port", "--tgi.port", "--triton.http_port", "--triton.grpc_port", "--mindspore.http_port")
GRPC_PORT = "--mindspore.grpc_port"
TEXT = "The mill by the pond turns slowly while the water of many rivers runs past it. "
TWIN = "openai again"
_LONE_TOKENS = 2
_PROMPT_SETS = 4
_MEASURES = ("alone_ms", "burst_ms", "tokens_per_s", "between_ms", "server_us_a_token")
_COMPARED = {"alone_ms": "alone_ms", "burst_ms": "burst_ms", "tokens_per_s": "percent", "between_ms": "percent"}


@dataclass(slots=True)
class Way:
    """One way to the model, its clients, and what was measured on it: a number a round, by measure."""

    dialect: Dialect
    lines: list[Line]
    numbers: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in _MEASURES})
    texts: dict[str, str] = field(default_factory=dict)

    def read(self, prompts: Sequence[str], answers: Sequence[clients.Answer]) -> None:
        for prompt, answer in zip(prompts, answers, strict=True):
            self.texts[prompt] = self.dialect.text(answer.raw)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked in a round."""

    prompts: Sequence[str]
    num_clients: int
    num_lone: int
    max_tokens: int
    server_pid: int

    def burst(self, number: int) -> Sequence[str]:
        """The prompts of a round's bursts."""
        first = number % _PROMPT_SETS * self.num_clients
        return self.prompts[first : first + self.num_clients]


async def measure_burst(way: Way, prompts: Sequence[str], plan: Plan) -> None:
    """Asks all prompts at once."""
    requests = [way.dialect.request(prompt, plan.max_tokens) for prompt in prompts]
    before_s = processor_s(plan.server_pid)
    began = time.perf_counter()
    answers = await asyncio.gather(*(line.ask(request) for line, request in zip(way.lines, requests, strict=True)))
    elapsed = time.perf_counter() - began
    num_tokens = len(prompts) * plan.max_tokens
    way.numbers["burst_ms"].append(statistics.median(answer.pieces_s[0] for answer in answers) * 1e3)
    way.numbers["tokens_per_s"].append(num_tokens / elapsed)
    between = [later - piece for answer in answers for piece, later in itertools.pairwise(answer.pieces_s)]
    way.numbers["between_ms"].append(statistics.median(between) * 1e3)
    way.numbers["server_us_a_token"].append((processor_s(plan.server_pid) - before_s) * 1e6 / num_tokens)
    way.read(prompts, answers)


async def measure_lone(ways: Sequence[Way], number: int, plan: Plan) -> None:
    """Asks for a first token, way after way, several times; a round's number is the median of a way's times."""
    firsts: dict[int, list[float]] = {id(way): [] for way in ways}
    for turn in range(plan.num_lone):
        prompt = plan.prompts[(number + turn) % len(plan.prompts)]
        for way in turned(ways, number + turn):
            answer = await way.lines[0].ask(way.dialect.request(prompt, _LONE_TOKENS))
            firsts[id(way)].append(answer.pieces_s[0] * 1e3)
    for way in ways:
        way.numbers["alone_ms"].append(statistics.median(firsts[id(way)]))


async def choose_prompts(way: Way, count: int, max_tokens: int) -> list[str]:
    """Prompts whose answers are as long as they may be; short, because what a prompt costs is the same by every way."""
    chosen: list[str] = []
    for number in itertools.count():
        prompts = [f"{number}.{place}: {TEXT[place : place + 40]}" for place in range(len(way.lines))]
        requests = [way.dialect.request(prompt, max_tokens) for prompt in prompts]
        answers = await asyncio.gather(*(line.ask(request) for line, request in zip(way.lines, requests, strict=True)))
        chosen += [prompt for prompt, answer in zip(prompts, answers, strict=True) if b'"length"' in answer.raw]
        if len(chosen) >= count:
            break
    return chosen[:count]


@contextlib.asynccontextmanager
async def serving(model: str, settings: list[str]) -> AsyncIterator[dict[str, str]]:
    """The ports of a running server by name; "openai" is the URL's, "model" the name of the model."""
    ports = [part for flag in (*PORTS, GRPC_PORT) for part in (flag, "0")]
    command = [sys.executable, "-m", "millpond", "serve", model, *ports, *settings]
    plain = {**os.environ, "MILLPOND_SPECULATION_MODE": "off"}
    server = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, env=plain)
    assert server.stdout is not None
    found: dict[str, str] = {"pid": str(server.pid)}
    try:
        async for line in server.stdout:
            if match := re.match(rb"Millpond is serving (\S+) at http://(\S+)", line):
                found |= {"model": match[1].decode(), "openai": match[2].decode()}
                break
            if match := re.match(rb"(.+) is at (\S+)", line):
                found[match[1].decode()] = match[2].decode()
        yield found
    finally:
        with contextlib.suppress(ProcessLookupError):
            server.send_signal(signal.SIGTERM)
        await server.wait()


async def run(args: argparse.Namespace) -> dict[str, Any]:
    """Returns every way's numbers by round, and whether the texts were the same."""
    # Without prefix reuse, or the way that asks a prompt first would compute it for the others; without guesses, whose
    # luck would be in the time between tokens.
    settings = {"runtime.threads": args.threads, "model.dtype": args.dtype, "cache.bytes": args.cache_bytes}
    settings["cache.prefix"] = "off"
    flags = [part for name, value in settings.items() if value is not None for part in (f"--{name}", str(value))]
    async with serving(args.model, flags) as at:
        model = at["model"]
        ports = {name.lower(): port for name, port in at.items()}
        dialects = [*all_dialects(ports, model), clients.openai(at["openai"], model, TWIN)]
        ways = [Way(one, [await one.connect() for _ in range(args.clients)]) for one in dialects]
        try:
            prompts = await choose_prompts(ways[0], _PROMPT_SETS * args.clients, args.max_tokens)
            plan = Plan(prompts, args.clients, args.lone, args.max_tokens, int(at["pid"]))
            await measure_all(ways, plan, args.seconds)
        finally:
            for line in (line for way in ways for line in way.lines):
                line.close()
    same = {way.dialect.name: way.texts == ways[0].texts for way in ways}
    return {"numbers": {way.dialect.name: way.numbers for way in ways}, "same": same}


async def measure_all(ways: list[Way], plan: Plan, seconds: float) -> None:
    """One round unmeasured, then as many as there is time for."""
    ends = time.perf_counter() + seconds
    number = 0
    while number < 2 or time.perf_counter() < ends:
        if number == 1:
            for numbers in (numbers for way in ways for numbers in way.numbers.values()):
                numbers.clear()
        await measure_lone(ways, number, plan)
        for way in turned(ways, number):
            await measure_burst(way, plan.burst(number), plan)
        number += 1


def report(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a way, and one on how far apart they are and what the noise is."""
    names = list(runs[0]["numbers"])
    numbers = {
        measure: {name: [n for run in runs for n in run["numbers"][name][measure]] for name in names}
        for measure in _MEASURES
    }
    rows: list[dict[str, Any]] = []
    for name in names:
        row: dict[str, Any] = {"way": name}
        for measure in _MEASURES:
            row[measure] = round(statistics.median(numbers[measure][name]), 2)
        for measure, unit in _COMPARED.items():
            row[f"{measure}_off"] = off_mean(numbers[measure], name, is_share=unit == "percent").rounded()
        rows.append({**row, "same_text": all(run["same"][name] for run in runs)})
    last: dict[str, Any] = {"rounds": len(numbers["alone_ms"][names[0]])}
    for measure, unit in _COMPARED.items():
        of_ways = {name: values for name, values in numbers[measure].items() if name != TWIN}
        pairs = compared(of_ways, is_share=unit == "percent")
        last[f"{measure}_apart"] = {
            "at_least": round(max(pair.at_least for pair in pairs), 2),
            "at_most": round(max(pair.at_most for pair in pairs), 2),
        }
        twins = {name: numbers[measure][name] for name in (TWIN.split()[0], TWIN)}
        last[f"{measure}_twins"] = compared(twins, is_share=unit == "percent")[0].rounded()
    return [*rows, last]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--lone", type=int, default=4, help="requests for a first token alone, of each way in a round")
    parser.add_argument("--max-tokens", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=50.0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--dtype")
    parser.add_argument("--cache-bytes", default="256MiB")
    parser.add_argument("--json", type=Path, help="where every round's numbers go")
    parser.add_argument("--pool", type=Path, nargs="+", help="report on these and measure nothing")
    args = parser.parse_args()
    if args.pool:
        runs = [json.loads(path.read_text()) for path in args.pool]
    else:
        if os.cpu_count() == 1:
            print("One core serves clients and server here: every protocol's work counts double.", file=sys.stderr)
        runs = [asyncio.run(run(args))]
        if args.json:
            args.json.write_text(json.dumps(runs[0]) + "\n")
    for row in report(runs):
        print(json.dumps(row))


if __name__ == "__main__":
    main()
