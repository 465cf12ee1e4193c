"""Our engine and any others, turn by turn on the same machine: decode, prefill, 16 and 64 streams.

    python -m bench.engine.compare --model DIR --precision int8 --peer NAME=COMMAND... --json OUT
        [--cache-dtype int8] [--rounds 3] [--cases decode "prefill 512"] [--timeout 900]

COMMAND is a template: `{model}`, `{precision}`, `{cache_dtype}`, `{threads}`, `{prompt}`, `{output}`, `{streams}` are
filled in, and it prints tokens a second as JSON lines; bench/engine/cases.py has the contract, bench/engine/peers/
ready-made commands. Ours is such a command too. Within a round the sides of a case run one after the other, in an order
that turns with the round; the read bandwidth is measured before each. Writes OUT, and beside it the same name with .md
and .svg. A side that fails is reported and left out of that case; the exit code is 1 if ours failed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.engine.cases import CASES, Case, Peer, PeerError, read_lines, run_command
from bench.facts import describe_machine, foreign_share, processor_seconds, read_bandwidth
from bench.report import bar_chart, markdown_table, medians, ratios
from millpond.base.machine import read_machine

OURS = "millpond"
_PEERS = Path(__file__).parent / "peers"
OUR_COMMAND = (
    f"{sys.executable} {_PEERS / 'millpond_llm.py'} --model {{model}} --precision {{precision}} --threads {{threads}} "
    "--cache-dtype {cache_dtype} --case {case} --prompt {prompt} --output {output} --streams {streams}"
)


def measure(peer: Peer, cases: Sequence[Case], values: dict[str, str], timeout_s: float) -> dict[str, Any]:
    """One start of one side: its rates by case, and what the machine did meanwhile."""
    row: dict[str, Any] = {"side": peer.name, "cases": [case.name for case in cases]}
    row["read_bytes_per_second"] = read_bandwidth(int(values["threads"]))
    before, start = processor_seconds(), time.perf_counter()
    try:
        out, used = run_command(peer.command(cases, values), timeout_s)
        rates = read_lines(out, cases)
        row["samples"] = rates
        row["tokens_per_second"] = {name: statistics.median(found) for name, found in rates.items()}
        row["foreign_share"] = round(foreign_share(before, processor_seconds(), used), 3)
    except PeerError as error:
        row["error"] = str(error)
    row["seconds"] = round(time.perf_counter() - start, 1)
    return row


def plan_round(peers: Sequence[Peer], cases: Sequence[Case], index: int) -> list[tuple[Peer, list[Case]]]:
    """The starts of a round: case by case with the sides in turn, then those that answer all cases at once."""
    turn = index % len(peers)
    order = [*peers[turn:], *peers[:turn]]
    plan = [(peer, [case]) for case in cases for peer in order if not peer.takes_all]
    return plan + [(peer, list(cases)) for peer in order if peer.takes_all]


def collect(rows: Sequence[dict[str, Any]], cases: Sequence[Case]) -> dict[str, dict[str, list[float]]]:
    """Case -> side -> a rate a round."""
    samples: dict[str, dict[str, list[float]]] = {case.name: {} for case in cases}
    for row in rows:
        for case, rate in row.get("tokens_per_second", {}).items():
            samples[case].setdefault(row["side"], []).append(rate)
    return samples


def write_report(out: Path, document: dict[str, Any], samples: dict[str, dict[str, list[float]]]) -> str:
    """Writes JSON, table and chart; returns the table."""
    sides = document["sides"]
    title = f"{document['model']}, {document['precision']}: tokens/s"
    table = markdown_table(samples, sides, "tokens/s")
    reads = [row["read_bytes_per_second"] / 1e9 for row in document["rows"]]
    machine = document["machine"]
    note = f"{machine['cpu']}, {machine['cores']} cores; {document['rounds']} rounds in turn; memory read at "
    note += f"{min(reads):.1f} to {max(reads):.1f} GB/s, median {statistics.median(reads):.1f}."
    failed = [row for row in document["rows"] if "error" in row]
    failures = [f"- {row['side']}, {', '.join(row['cases'])}: {row['error']}" for row in failed]
    text = f"## {title}\n\n{table}\n{note}\n" + "".join(f"\n{line}" for line in dict.fromkeys(failures)) + "\n"
    out.write_text(json.dumps(document, indent=2) + "\n")
    out.with_suffix(".md").write_text(text)
    out.with_suffix(".svg").write_text(bar_chart(title, medians(samples), sides))
    return text


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [case.name for case in CASES]
    parser.add_argument("--model", required=True)
    parser.add_argument("--precision", default="bfloat16", help="ours, and {precision} of the peers")
    parser.add_argument("--cache-dtype", default="auto", help="of keys and values, ours and {cache_dtype} of the peers")
    parser.add_argument("--peer", action="append", default=[], type=Peer.parse, metavar="NAME=COMMAND")
    parser.add_argument("--json", type=Path, required=True, metavar="OUT")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", nargs="+", default=names, choices=names)
    parser.add_argument("--threads", type=int, default=read_machine().usable_cores)
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds for one start of one side")
    parser.add_argument("--ours", default=OUR_COMMAND, metavar="COMMAND", help="our own command, to change its flags")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    peers = [Peer(OURS, args.ours), *args.peer]
    cases = [case for case in CASES if case.name in args.cases]
    values = {name: str(getattr(args, name)) for name in ("model", "precision", "cache_dtype", "threads")}
    rows: list[dict[str, Any]] = []
    for index in range(args.rounds):
        for peer, asked in plan_round(peers, cases, index):
            rows.append({"round": index, **measure(peer, asked, values, args.timeout)})
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    samples = collect(rows, cases)
    document = {
        "model": Path(args.model).name,
        "precision": args.precision,
        "cache_dtype": args.cache_dtype,
        "sides": [peer.name for peer in peers],
        "commands": {peer.name: peer.template for peer in peers},
        "rounds": args.rounds,
        "machine": describe_machine(),
        "medians": medians(samples),
        "ratios": ratios(samples, OURS),
        "rows": rows,
    }
    print(write_report(args.json, document, samples))
    return int(any("error" in row and row["side"] == OURS for row in rows))


if __name__ == "__main__":
    sys.exit(main())
