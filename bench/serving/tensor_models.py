"""Small tensor models on a real Triton and on Millpond: throughput and p99, turn by turn in one run.

    python -m bench.serving.tensor_models --triton VENV [--rounds 3] [--seconds 1] [--only TEXT] [--json FILE]

VENV is a virtual environment with nvidia-pytriton 0.7.0 (Triton 2.51 for CPUs). Both servers run the same `model.py`
files in their Python back ends: identity, add, the sum of a 1 MB input, an ensemble of three steps, layers that batch.
64 clients ask over HTTP and over gRPC, with raw tensors, both servers in turns of a twentieth of a second; the clients
are one process of prebuilt requests, the same for both. Bars: throughput and p99 at least as good as Triton's; 64
clients of one row reach 90 % of the rows per second of direct batches of 64, in turns with them; a lone request to a
model that batches takes no longer than the delay and one to a model that does not, which is measured in turns with it;
what a server adds to calling the model's function is at most 150 us at p50. Ratios are medians of the rounds' ratios.
Prints a table, and JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import json
import statistics
import sys
import tempfile
import time
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.facts import describe_machine
from bench.serving.tensor_models_folder import IMAGE, LARGE, WIDTH, Case, grpc_output, write_folder
from bench.serving.tensor_models_load import Client, Crowd, GrpcClient, HttpClient, Measured, run
from bench.serving.triton_pair import Peer, started_pair

CLIENTS = 64
DELAY_US = 5000
TURNS = 4
TURN_S = 0.05
BATCHES_TURN_S = 0.5  # some ten batches
CASES = (
    *(Case("identity", rows) for rows in (1, 8, 64)),
    *(Case("add", rows, inputs=("IN", "IN_B")) for rows in (1, 8, 64)),
    Case("large", 1, width=LARGE),
    *(Case("stages", rows) for rows in (1, 8, 64)),
)
BATCHING = (("layers", WIDTH), ("deep", WIDTH), ("images", IMAGE))
WARM_S = 0.2


@dataclass(frozen=True, slots=True)
class Line:
    """One measurement of one server."""

    what: str
    protocol: str
    server: str
    per_s: float
    p50_ms: float
    p99_ms: float


def client_for(case: Case, protocol: str, peer: Peer) -> Callable[[], Client]:
    """Returns what makes a client of a case."""
    if protocol == "http":
        return functools.partial(HttpClient, peer.http, case.http(peer.http))
    return functools.partial(GrpcClient, peer.grpc, "/inference.GRPCInferenceService/ModelInfer", case.message())


def measure(case: Case, protocol: str, peer: Peer, clients: int, seconds: float) -> Measured:
    """Lets clients ask one server, and checks what it answers."""
    found, body = run(client_for(case, protocol, peer), clients, WARM_S, seconds)
    return checked(case, protocol, peer, found, body)


def checked(case: Case, protocol: str, peer: Peer, found: Measured, body: bytes) -> Measured:
    """Returns what was measured if the answers were right."""
    tail = case.tail()
    output = body if protocol == "http" else grpc_output(body)
    if not body or not output.endswith(tail):
        raise ValueError(f"{peer.name} answers {case.name} over {protocol} with something else: {body[:300]!r}")
    if not found.latencies:
        raise TimeoutError(f"{peer.name} answered {case.name} over {protocol} not once in {found.seconds} s")
    print(f"{case.name} {protocol} {peer.name} {found.per_s:.0f}/s", file=sys.stderr, flush=True)
    return found


def line(what: str, protocol: str, peer: Peer, found: Measured, rows: int = 1) -> Line:
    """Returns a measurement's line."""
    return Line(what, protocol, peer.name, found.per_s * rows, found.percentile_ms(0.5), found.percentile_ms(0.99))


def throughput(pair: Sequence[Peer], only: str, seconds: float) -> list[Line]:
    """All cases over both protocols."""
    lines = []
    for case in CASES:
        for protocol in ("http", "grpc"):
            if only in f"{case.name} {protocol}":
                for peer, found in in_turns(case, protocol, pair, seconds):
                    lines.append(line(case.name, protocol, peer, found))
    return lines


def in_turns(case: Case, protocol: str, pair: Sequence[Peer], seconds: float) -> list[tuple[Peer, Measured]]:
    """Measures both servers in turns so short that the machine is the same for both, which it is not for a second."""
    with contextlib.ExitStack() as stack:
        sides = [
            (peer, stack.enter_context(contextlib.closing(Crowd(client_for(case, protocol, peer), CLIENTS))))
            for peer in pair
        ]
        taken = {peer.name: Measured(0.0) for peer in pair}
        for _, crowd in sides:
            crowd.ask(WARM_S)
        for number in range(max(2, round(seconds / TURN_S))):
            for peer, crowd in sides if number % 2 == 0 else sides[::-1]:
                taken[peer.name].add(crowd.ask(TURN_S))
        return [(peer, checked(case, protocol, peer, taken[peer.name], crowd.body)) for peer, crowd in sides]


def batching(pair: Sequence[Peer], seconds: float) -> list[Line]:
    """Rows a second of single rows that the server batches, in turns with direct batches of the same server."""
    lines = []
    for peer in pair:
        for protocol in ("http", "grpc"):
            for model, width in BATCHING:
                with contextlib.ExitStack() as stack:
                    sides = []
                    for what, clients, rows in (("64 clients x1", CLIENTS, 1), ("direct x64", 2, 64)):
                        case = Case(model, rows, width)
                        crowd = Crowd(client_for(case, protocol, peer), clients)
                        sides.append((what, case, stack.enter_context(contextlib.closing(crowd)), Measured(0.0)))
                    for _, _, crowd, _ in sides:
                        crowd.ask(WARM_S)
                    for number in range(max(2, round(seconds / BATCHES_TURN_S))):
                        for _, _, crowd, taken in sides if number % 2 == 0 else sides[::-1]:
                            taken.add(crowd.ask(BATCHES_TURN_S))
                    for what, case, crowd, taken in sides:
                        found = checked(case, protocol, peer, taken, crowd.body)
                        lines.append(line(f"{model} {what}", protocol, peer, found, case.rows))
    return lines


def waiting(pair: Sequence[Peer], seconds: float) -> list[Line]:
    """One client of a model that waits for more, in turns with one that does not, and with a process that only sleeps.

    Processors that slept are slow to wake; so the model that does not wait is asked again after a pause as well.
    """
    lines = []
    delay_s = DELAY_US / 1e6
    for peer in pair:
        for protocol in ("http", "grpc"):
            taken: dict[str, list[float]] = {"waits": [], "identity": [], "identity, paused": [], "sleep": []}
            with contextlib.ExitStack() as stack:
                waits, identity = (
                    stack.enter_context(contextlib.closing(Crowd(client_for(Case(model, 1), protocol, peer), 1)))
                    for model in ("waits", "identity")
                )
                for crowd in (waits, identity):
                    crowd.ask(WARM_S)
                for _ in range(TURNS):
                    taken["waits"] += waits.ask(seconds / TURNS).latencies
                    taken["identity"] += identity.ask(seconds / TURNS / 4).latencies
                    for _ in range(int(seconds / TURNS / delay_s / 2)):
                        began = time.perf_counter()
                        time.sleep(delay_s)
                        taken["sleep"].append(time.perf_counter() - began)
                        taken["identity, paused"] += identity.ask(0.0).latencies
            for what, latencies in taken.items():
                lines.append(line(f"{what} in turns", protocol, peer, Measured(sum(latencies), latencies)))
    return lines


def overhead(pair: Sequence[Peer], work: Path, seconds: float) -> list[Line]:
    """One client that waits for each answer, and the function itself."""
    lines = []
    case = Case("identity", 1)
    for peer in pair:
        for protocol in ("http", "grpc"):
            found = measure(case, protocol, peer, 1, seconds)
            lines.append(line("identity alone", protocol, peer, found))
    call = direct_call(work / "models" / "identity" / "1" / "model.py", case)
    taken = []
    for _ in range(2000):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    found = Measured(sum(taken), taken)
    return [*lines, Line("identity alone", "call", "function", found.per_s, *map(found.percentile_ms, (0.5, 0.99)))]


def direct_call(file: Path, case: Case) -> Callable[[], object]:
    """Returns a call of a model's `execute` in this process, with the simplest utilities that it can run on."""
    array = case.arrays()["IN"]
    utilities: Any = types.ModuleType("triton_python_backend_utils")
    utilities.Tensor = lambda name, data: types.SimpleNamespace(name=name, data=data, as_numpy=lambda: data)
    utilities.InferenceResponse = lambda tensors: types.SimpleNamespace(tensors=tensors)
    utilities.get_input_tensor_by_name = lambda request, name: request[name]
    sys.modules["triton_python_backend_utils"] = utilities
    spec = importlib.util.spec_from_file_location("measured_model", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.TritonPythonModel()
    return lambda: model.execute([{"IN": utilities.Tensor("IN", array)}])


def summary(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Returns medians over the rounds, with ratios to Triton."""
    grouped: dict[tuple[str, str, str], list[Line]] = {}
    for one in lines:
        grouped.setdefault((one.what, one.protocol, one.server), []).append(one)
    found = []
    for what, protocol in dict.fromkeys(key[:2] for key in grouped):
        entry: dict[str, Any] = {"what": what, "protocol": protocol}
        for server in ("triton", "millpond", "function"):
            own = grouped.get((what, protocol, server))
            if own:
                entry[server] = {
                    "per_s": round(statistics.median(one.per_s for one in own), 1),
                    "p50_ms": round(statistics.median(one.p50_ms for one in own), 4),
                    "p99_ms": round(statistics.median(one.p99_ms for one in own), 4),
                    "runs_per_s": [round(one.per_s, 1) for one in own],
                }
        if "triton" in entry and "millpond" in entry:
            rounds = list(zip(grouped[what, protocol, "millpond"], grouped[what, protocol, "triton"], strict=True))
            ratios = [ours.per_s / theirs.per_s for ours, theirs in rounds]
            entry["throughput_ratios"] = [round(ratio, 3) for ratio in ratios]
            entry["throughput_ratio"] = round(statistics.median(ratios), 3)
            entry["p99_ratio"] = round(statistics.median(theirs.p99_ms / ours.p99_ms for ours, theirs in rounds), 3)
        found.append(entry)
    return found


def bars(table: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns what the bars ask for."""
    by_name = {(entry["what"], entry["protocol"]): entry for entry in table}
    compared = [entry for entry in table if entry["what"] in {case.name for case in CASES}]
    found: dict[str, Any] = {}
    if compared:
        found["least_throughput_ratio"] = min(entry["throughput_ratio"] for entry in compared)
        found["least_p99_ratio"] = min(entry["p99_ratio"] for entry in compared)
    for protocol in ("http", "grpc"):
        if ("layers direct x64", protocol) in by_name:
            for server in ("triton", "millpond"):
                for model, _ in BATCHING:
                    single, direct = (
                        by_name[(f"{model} {what}", protocol)][server]["runs_per_s"]
                        for what in ("64 clients x1", "direct x64")
                    )
                    shares = [ours / all_there_is for ours, all_there_is in zip(single, direct, strict=True)]
                    found[f"batching_share_{model}_{protocol}_{server}"] = round(statistics.median(shares), 3)
                    found[f"batching_shares_{model}_{protocol}_{server}"] = [round(share, 3) for share in shares]
        if ("waits in turns", protocol) in by_name:
            waits, plain = by_name[("waits in turns", protocol)], by_name[("identity in turns", protocol)]
            for server in ("triton", "millpond"):
                for share in ("p50_ms", "p99_ms"):
                    over = waits[server][share] - DELAY_US / 1e3
                    found[f"waits_{share}_over_delay_{protocol}_{server}"] = round(over, 3)
                    found[f"and_over_one_that_does_not_{share}_{protocol}_{server}"] = round(
                        over - plain[server][share], 3
                    )
                    paused, asleep = (
                        by_name[(f"{what} in turns", protocol)][server][share] for what in ("identity, paused", "sleep")
                    )
                    found[f"and_over_one_after_a_pause_{share}_{protocol}_{server}"] = round(over - paused, 3)
                    found[f"a_sleep_{share}_over_delay_{protocol}_{server}"] = round(asleep - DELAY_US / 1e3, 3)
        if ("identity alone", protocol) in by_name:
            function = by_name[("identity alone", "call")]["function"]["p50_ms"]
            for server in ("triton", "millpond"):
                over = by_name[("identity alone", protocol)][server]["p50_ms"] - function
                found[f"overhead_p50_us_{protocol}_{server}"] = round(over * 1e3, 1)
    return found


def as_table(table: Sequence[dict[str, Any]]) -> str:
    """Returns the medians as text."""
    lines = [f"{'':22}{'':5}{'Triton/s':>10}{'ours/s':>10}{'ratio':>7}{'p99 ms':>9}{'ours':>9}{'ratio':>7}"]
    for entry in table:
        if "throughput_ratio" in entry:
            one, other = entry["triton"], entry["millpond"]
            lines.append(
                f"{entry['what']:22}{entry['protocol']:5}{one['per_s']:10.0f}{other['per_s']:10.0f}"
                f"{entry['throughput_ratio']:7.2f}{one['p99_ms']:9.2f}{other['p99_ms']:9.2f}{entry['p99_ratio']:7.2f}"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--triton", type=Path, required=True, help="Virtual environment with nvidia-pytriton 0.7.0.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="Of every measurement.")
    parser.add_argument("--only", default="", help="Cases and protocols whose name has this text.")
    parser.add_argument("--parts", default="throughput,batching,waiting,overhead")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    lines: list[Line] = []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        write_folder(work / "models", DELAY_US)
        with started_pair(given.triton, work / "models", work) as pair:
            for number in range(given.rounds):
                turn = pair if number % 2 == 0 else pair[::-1]
                if "throughput" in given.parts:
                    lines += throughput(turn, given.only, given.seconds)
                if "batching" in given.parts:
                    lines += batching(turn, given.seconds)
                if "waiting" in given.parts:
                    lines += waiting(turn, given.seconds)
                if "overhead" in given.parts:
                    lines += overhead(turn, work, given.seconds)
    table = summary(lines)
    found = {"machine": describe_machine(), "rounds": given.rounds, "bars": bars(table), "measurements": table}
    print(as_table(table), file=sys.stderr)
    print(json.dumps(found["bars"], indent=2), file=sys.stderr)
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
