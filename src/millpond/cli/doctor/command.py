"""`millpond doctor`: prints the facts, the measurement and the findings, as text or JSON."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import click

from millpond.base.progress import StageProgress
from millpond.base.units import format_bytes

if TYPE_CHECKING:
    from millpond.cli.doctor.bandwidth import Bandwidth
    from millpond.cli.doctor.facts import Facts
    from millpond.cli.doctor.findings import Finding


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--quick", is_flag=True, help="Leave out the measurement of memory bandwidth.")
def doctor(as_json: bool, quick: bool) -> int:
    """Says what this machine can do, what is slow on it, and why.

    Exits with 1 when something keeps Millpond from running.
    """
    from millpond.cli.doctor.facts import collect
    from millpond.cli.doctor.findings import judge

    facts = collect()
    bandwidth = None if quick else _measure(facts)
    findings = judge(facts, bandwidth)
    if as_json:
        click.echo(json.dumps(as_document(facts, bandwidth, findings), indent=2))
    else:
        click.echo("\n".join(as_lines(facts, bandwidth, findings)))
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


def _measure(facts: Facts) -> Bandwidth:
    from millpond.cli.doctor.bandwidth import choose_buffer, measure_read

    with StageProgress() as progress:
        progress("Measuring memory bandwidth", 0.0)
        machine = facts.machine
        return measure_read(machine.usable_cores, choose_buffer(machine.last_level_cache, machine.memory_available))
