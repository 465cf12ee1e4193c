"""Writes a communication-heavy mix of jobs from Gavel's measured throughputs, for `bench.jobs.workload`.

For each model and number of V100s Gavel has the rate on one node and the rate when spread. Two equations give compute
time and gradient bytes: the one-node rate at the ring of a DGX-1V, the spread rate over one network card.

    python -m bench.jobs.mix --gavel simulation_throughputs.json --jobs 400 --nic-gbps 1.1 --seed 1 > mix.csv
"""

from __future__ import annotations

import argparse
import ast
import csv
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from millpond.api.topology import dgx1v_wiring
from millpond.jobs.scheduling.rings import WiringModel


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the mix to standard output."""
    parser = argparse.ArgumentParser(prog="bench.jobs.mix", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--gavel", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=400)
    parser.add_argument("--devices", type=int, default=512, help="devices of the cluster, for the arrival rate")
    parser.add_argument("--load", type=float, default=0.8, help="demand on ideal placements over capacity")
    parser.add_argument("--nic-gbps", type=float, default=1.1)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(argv)
    rng = random.Random(options.seed)
    models = load_models(options.gavel, options.nic_gbps)
    writer = csv.writer(sys.stdout)
    writer.writerow(["name", "time", "num_gpus", "steps", "compute_s", "gradient_bytes"])
    now_s = 0.0
    for number in range(options.jobs):
        size = rng.choice([size for size in (1, 2, 4, 8) for _ in range(2)])
        run_s = min(rng.lognormvariate(7.5, 1.0), 50_000)
        name, compute_s, gradient, ideal_s = rng.choice([m for m in models if m[0].endswith(f"x{size}")])
        writer.writerow([f"{number}-{name}", round(now_s, 1), size, max(int(run_s / ideal_s), 1), compute_s, gradient])
        now_s += rng.expovariate(options.load * options.devices / (3.75 * 3000.0))
    return 0


def load_models(path: Path, nic_gbps: float) -> list[tuple[str, float, int, float]]:
    """Returns name, compute seconds, gradient bytes and one-node step time for each model and size."""
    table = json.loads(path.read_text())
    wiring = WiringModel(dgx1v_wiring())
    models = []
    for key, entry in table["v100"].items():
        model, size = ast.literal_eval(key)
        packed = entry["null"]
        if not packed or size not in (1, 2, 4, 8):
            continue
        ideal_s = 1.0 / packed
        name = f"{model.split(' ')[0]}-{model.rsplit(' ', 1)[-1].rstrip(')')}-x{size}"
        spread = table["v100_unconsolidated"].get(key, {}).get("null", 0.0) if size > 1 else 0.0
        gradient = 0
        if spread and spread < packed:
            factor = 2 * (size - 1) / size / 1e9
            near = wiring.best_gbps(255, size)
            gradient = int((1.0 / spread - ideal_s) / (factor * (1.0 / nic_gbps - 1.0 / near)))
            gradient = min(gradient, int(0.9 * ideal_s * near / factor))
        ring_s = 2 * (size - 1) / size * gradient / (wiring.best_gbps(255, size) * 1e9) if size > 1 else 0.0
        compute_s = ideal_s - ring_s
        models.append((name, compute_s, gradient, ideal_s))
    return models


if __name__ == "__main__":
    raise SystemExit(main())
