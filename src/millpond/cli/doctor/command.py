"""`millpond doctor`: prints the facts, the measurement and the findings, as text or JSON."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import click

from millpond.base.progress import StageProgress
from millpond.base.units import format_bytes
from millpond.cli.options import SettingsCommand, setting_options, take_config

if TYPE_CHECKING:
    from millpond.cli.doctor.bandwidth import Bandwidth
    from millpond.cli.doctor.facts import Facts
    from millpond.cli.doctor.findings import Finding
    from millpond.cli.doctor.rates import MultiplyRate
    from millpond.config.schema import EngineConfig
    from millpond.inference.engine.footprint import Footprint


@click.command(cls=SettingsCommand, params=setting_options("model", "cache", "scheduler", "speculation", "runtime"))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--quick", is_flag=True, help="Leave out the measurements of bandwidth and multiplications.")
def doctor(as_json: bool, quick: bool, **flags: Any) -> int:
    """Says what this machine can do, what is slow on it, and why.

    With --model, also what that model will take of the memory, before it is loaded.

    Exits with 1 when something keeps Millpond from running.
    """
    from millpond.cli.doctor.facts import collect
    from millpond.cli.doctor.findings import judge

    wants_model = flags["model__path"] is not None
    config = take_config(flags, None)
    facts = collect()
    footprint = predict(config) if wants_model else None  # first: it counts what this process holds now
    bandwidth, rates = (None, []) if quick else _measure(facts)
    findings = judge(facts, bandwidth)
    if as_json:
        document = as_document(facts, bandwidth, findings)
        document["multiply"] = [dataclasses.asdict(rate) for rate in rates]
        document["footprint"] = dataclasses.asdict(footprint) if footprint else None
        click.echo(json.dumps(document, indent=2))
    else:
        lines = as_lines(facts, bandwidth, findings)
        lines[lines.index("") : lines.index("")] = [*rate_lines(rates), *footprint_lines(footprint)]
        click.echo("\n".join(lines))
    return int(any(finding.level == "error" for finding in findings))


def as_document(facts: Facts, bandwidth: Bandwidth | None, findings: list[Finding]) -> dict[str, Any]:
    """Returns what --json prints."""
    document = dataclasses.asdict(facts)
    document["machine"]["cpu_flags"] = sorted(facts.machine.cpu_flags)
    document["machine"]["usable_cores"] = facts.machine.usable_cores
    document["bandwidth_bytes_per_s"] = dataclasses.asdict(bandwidth) if bandwidth else None
    document["findings"] = [dataclasses.asdict(finding) for finding in findings]
    return document


def as_lines(facts: Facts, bandwidth: Bandwidth | None, findings: list[Finding]) -> list[str]:
    """Returns the report for people."""
    machine = facts.machine
    quota = "" if machine.cpu_quota is None else f", granted time of {machine.cpu_quota:g}"
    limit = "" if machine.memory_limit is None else f", limited to {format_bytes(machine.memory_limit)}"
    amx = {None: "not there", True: "allowed", False: "refused by the kernel"}[facts.amx_permitted]
    rows = [
        ("processor", f"{machine.cpu_model} ({machine.architecture})"),
        ("instructions", f"{machine.isa}; AMX {amx}"),
        (
            "cores",
            f"{machine.usable_cores} to compute with ({machine.logical_cpus} logical, {len(machine.allowed_cpus)} "
            f"allowed, {machine.physical_cores} physical{quota})",
        ),
        ("memory", f"{format_bytes(machine.memory_available)} free of {format_bytes(machine.memory_total)}{limit}"),
        *_bandwidth_rows(bandwidth),
        ("native ops", facts.native.error or "built and loadable"),
        ("compiler", facts.compiler or "none found"),
        ("models", f"{facts.cache_dir} ({format_bytes(facts.free_disk)} free)"),
        ("python", facts.python),
        ("packages", ", ".join(f"{name} {version or 'missing'}" for name, version in facts.versions.items())),
    ]
    lines = [f"{name:<13} {text}" for name, text in rows]
    lines.append("")
    if not findings:
        lines.append("Nothing is wrong and nothing holds this machine back.")
    for finding in findings:
        lines.append(f"{finding.level}: {finding.what} {finding.fix}".rstrip())
    return lines


def _bandwidth_rows(bandwidth: Bandwidth | None) -> list[tuple[str, str]]:
    if bandwidth is None:
        return []
    text = f"{bandwidth.one_thread / 1e9:.1f} GB/s with one thread"
    if bandwidth.threads > 1:
        text += f", {bandwidth.all_threads / 1e9:.1f} GB/s with {bandwidth.threads}"
    text += f" (read by {bandwidth.reader})"
    most = bandwidth.all_threads / (1 << 30)
    return [("memory read", text), ("roof", f"{most:.0f} tokens/s for one stream and 1 GiB of weights")]


def rate_lines(rates: list[MultiplyRate]) -> list[str]:
    """A line for the best instruction set's rates, for people."""
    best = [rate for rate in rates if rate.isa == rates[-1].isa]
    text = ", ".join(f"{rate.dtype} {rate.operations_per_s / 1e12:.2f}" for rate in best)
    return [f"{'multiply':<13} {best[0].isa}: {text} T/s with {best[0].threads} threads"] if best else []


def footprint_lines(footprint: Footprint | None) -> list[str]:
    """What a model will take, for people."""
    if footprint is None:
        return []
    weights = ", ".join(f"{format_bytes(size)} {dtype}" for dtype, size in footprint.weights.items())
    where = {
        "packed file": "mapped from the packed file of an earlier start",
        "first start": "mapped from a packed file, which the first start writes",
        "memory": "packed by every start",
    }[footprint.weights_from]
    mapped = f"{format_bytes(footprint.mapped_file)} mapped, which the system can take back"
    rows = [
        ("model", f"peak {format_bytes(footprint.peak)}, {format_bytes(footprint.after_loading)} once loaded"),
        ("  weights", f"{weights}, {where}"),
        *([("  its file", mapped)] if footprint.mapped_file else []),
        ("  cache", f"{format_bytes(footprint.cache)} when full"),
        *([("  draft model", f"{format_bytes(footprint.draft)} with a full cache")] if footprint.draft else []),
        ("  buffers", format_bytes(footprint.buffers)),
        ("  loading", f"{format_bytes(footprint.transient)} for a moment"),
        ("  process", format_bytes(footprint.process)),
    ]
    return [f"{name:<13} {text}" for name, text in rows]


def predict(config: EngineConfig) -> Footprint:
    """What the model of `config` will take; fetches it when it is a name that was never fetched."""
    with StageProgress() as progress:
        from millpond.inference.engine.footprint import predict_footprint
        from millpond.inference.engine.locating import locate_model

        config, path = locate_model(config, progress)
        return predict_footprint(config, path)


def _measure(facts: Facts) -> tuple[Bandwidth, list[MultiplyRate]]:
    from millpond.cli.doctor.bandwidth import choose_buffer, measure_read
    from millpond.cli.doctor.rates import multiply_rates

    with StageProgress() as progress:
        progress("Measuring memory bandwidth", 0.0)
        machine = facts.machine
        size = choose_buffer(machine.last_level_cache, machine.memory_available)
        bandwidth = measure_read(machine.usable_cores, size)
        if bandwidth.reader == "numpy":  # no native library, and nothing of it to measure
            return bandwidth, []
        progress("Measuring multiplications", 0.5)
        return bandwidth, multiply_rates(machine.usable_cores)
