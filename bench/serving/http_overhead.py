"""What HTTP, text and streaming cost: tokens/s of streaming clients over those of the same engine called in process.

    python -m bench.serving.http_overhead --model NAME_OR_PATH [--precision bfloat16] [--streams 64] [--rounds 3]

Both take turns: a server with `--streams` clients on the same box, which send words and read every event, and `LLM`
with as many prompts at once, whose text it makes too (at the end of each: nobody reads it before). Prompts of
`--prompt` words, about as many tokens, and answers of `--output` tokens. The clients work on the cores of the server,
and what that takes counts against it. Also prints the CPU time that a token took the gateway (requests included) and
the clients. Bar: >= 0.95.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence

import psutil

from bench.engine.cases import Peer
from bench.facts import read_bandwidth
from bench.serving.client import WORDS, Load, run_load
from bench.serving.compare import OUR_COMMAND, OURS, serving
from millpond import LLM, SamplingParams
from millpond.base.machine import read_machine

NAP_S = 0.2  # some steps: nothing is asked of single tokens here


def over_http(args: argparse.Namespace) -> dict[str, float]:
    """Tokens/s of streaming clients, each with one request, and what a token cost the gateway and the clients."""
    values = {"model": args.model, "precision": args.precision, "threads": str(args.threads)}
    with serving(Peer(OURS, OUR_COMMAND), values, 300.0) as (port, model):
        (gateway,) = psutil.Process().children()
        before = gateway.cpu_times()
        load = Load(port, model, args.streams, 1, args.prompt, args.output, as_words=True, nap_s=NAP_S)
        result = run_load(load)
        after = gateway.cpu_times()
    gateway_s = after.user + after.system - before.user - before.system
    return {
        "http": result.tokens / result.seconds,
        "gateway us/token": 1e6 * gateway_s / result.tokens,
        "clients us/token": 1e6 * result.client_cpu_s / result.tokens,
    }


def in_process(args: argparse.Namespace) -> dict[str, float]:
    """Tokens/s of as many prompts of words at once, text in and text out."""
    chance = random.SystemRandom()
    prompts = [" ".join(chance.choices(WORDS, k=args.prompt)) for _ in range(args.streams)]
    params = SamplingParams(temperature=0, max_tokens=args.output, ignore_eos=True)
    with LLM(args.model, dtype=args.precision, runtime_threads=args.threads, speculation_mode="off") as llm:
        llm.generate(prompts[:1], SamplingParams(temperature=0, max_tokens=4), use_tqdm=False)
        start = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - start
    return {"in process": sum(len(output.outputs[0].token_ids) for output in outputs) / seconds}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--output", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=read_machine().usable_cores)
    args = parser.parse_args(argv)
    rows: list[dict[str, float]] = []
    for index in range(args.rounds):
        row = {"read GB/s": read_bandwidth(args.threads) / 1e9}
        for measure in (over_http, in_process)[:: 1 if index % 2 == 0 else -1]:
            row |= measure(args)
        rows.append(row)
        print(json.dumps({key: round(value, 1) for key, value in row.items()}), flush=True)
    http, direct = (statistics.median(row[side] for row in rows) for side in ("http", "in process"))
    print(f"http / in process: {http / direct:.3f} of medians")
    return 0


if __name__ == "__main__":
    sys.exit(main())
