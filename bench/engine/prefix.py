"""16 requests that share a prefix of 1,024 tokens, with the prefix cache on and off, alternating.

    python -m bench.engine.prefix [--model NAME_OR_PATH] [--rounds 3] [--json FILE]

Each request has 32 tokens of its own and asks for 16; the shared part is new in each round, so that the first request
of a round always computes it. Bar: the total time with the cache is at least 5 times lower.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from pathlib import Path

from millpond import LLM, SamplingParams
from millpond.inference.weights.catalog import resolve_model

SHARED, OWN, OUTPUT, REQUESTS = 1024, 32, 16, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    path = str(resolve_model(args.model))
    params = SamplingParams(temperature=0, max_tokens=OUTPUT, ignore_eos=True)
    seconds: dict[str, list[float]] = {"on": [], "off": []}
    with (
        LLM(path, dtype=args.dtype, cache_prefix=True) as on,
        LLM(path, dtype=args.dtype, cache_prefix=False) as off,
    ):
        for round_ in range(args.rounds + 1):
            generator = random.Random(round_)
            shared = [generator.randrange(100, 40000) for _ in range(SHARED)]
            prompts = [shared + [generator.randrange(100, 40000) for _ in range(OWN)] for _ in range(REQUESTS)]
            for name, llm in (("on", on), ("off", off)):
                start = time.perf_counter()
                llm.generate(prompts, params, use_tqdm=False)
                if round_:
                    seconds[name].append(time.perf_counter() - start)
    medians = {name: round(statistics.median(values), 3) for name, values in seconds.items()}
    result = {**medians, "ratio": round(medians["off"] / medians["on"], 2)}
    print(json.dumps(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
