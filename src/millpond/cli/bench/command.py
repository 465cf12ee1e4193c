"""`millpond bench`: flags, progress and the report, as text or JSON."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from millpond.base.errors import ConfigError, MillpondError
from millpond.base.progress import StageProgress
from millpond.cli.bench.measure import Report, Spread
from millpond.cli.options import SettingsCommand, setting_options, take_config

if TYPE_CHECKING:
    from millpond.cli.bench.load import LoadPlan, Target
    from millpond.config.schema import EngineConfig

_LOCAL_ONLY = ("model", "cache", "scheduler", "speculation", "runtime")


@click.command(cls=SettingsCommand, params=setting_options(*_LOCAL_ONLY))
@click.argument("target", metavar="[MODEL|URL]", required=False)
@click.option(
    "--requests", metavar="N", type=click.IntRange(1), default=32, show_default=True, help="Requests to send."
)
@click.option(
    "--concurrency", metavar="N", type=click.IntRange(1), default=8, show_default=True, help="Requests open at a time."
)
@click.option("--rate", metavar="R", type=click.FloatRange(0, min_open=True), help="Requests a second at random times.")
@click.option(
    "--prompt-tokens", metavar="N", type=click.IntRange(1), default=128, show_default=True, help="Length of a prompt."
)
@click.option(
    "--output-tokens", metavar="N", type=click.IntRange(1), default=64, show_default=True, help="Length of an answer."
)
@click.option("--shared-prefix", metavar="N", type=click.IntRange(0), default=0, help="Tokens all prompts start with.")
@click.option(
    "--warmup",
    metavar="N",
    type=click.IntRange(0),
    default=1,
    show_default=True,
    help="Requests before the clock runs.",
)
@click.option("--model-name", help="URL: the model to ask for.  [default: the first it lists]")
@click.option("--chat", is_flag=True, help="URL: use chat completions.")
@click.option("--ignore-eos", is_flag=True, help="URL: send ignore_eos, for servers that know it.")
@click.option("--key-file", type=click.Path(), metavar="FILE", help="URL: file with the API key to send.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def bench(target: str | None, as_json: bool, **flags: Any) -> int:
    """Measures the latency and throughput of a model or a URL.

    MODEL runs in our engine on this machine; a URL (http://HOST:PORT, any OpenAI-style server) is measured as its
    clients see it. Exits with 1 when a request failed.
    """
    import asyncio

    from millpond.cli.bench.load import LoadPlan

    plan = LoadPlan(
        requests=flags.pop("requests"),
        concurrency=flags.pop("concurrency"),
        prompt_tokens=flags.pop("prompt_tokens"),
        output_tokens=flags.pop("output_tokens"),
        shared_prefix=flags.pop("shared_prefix"),
        rate=flags.pop("rate"),
    )
    warmup = flags.pop("warmup")
    is_url = target is not None and target.startswith(("http://", "https://"))
    with StageProgress() as progress:
        if is_url:
            assert target is not None
            report = asyncio.run(_bench_url(target, plan, warmup, flags, progress))
        else:
            report = asyncio.run(_bench_model(take_config(flags, target), plan, warmup, progress))
    click.echo(json.dumps(dataclasses.asdict(report), indent=2) if as_json else "\n".join(as_lines(report)))
    return int(report.failed > 0)


def as_lines(report: Report) -> list[str]:
    """Returns the report for people."""
    lines = [
        f"{report.target}",
        f"{report.requests} requests, {report.concurrency} at a time, {report.wall_s:.2f} s: "
        f"{report.prompt_tokens} prompt tokens, {report.output_tokens} output tokens",
        "",
        f"output      {report.output_tokens_per_s:10.1f} tokens/s",
        f"prompt      {report.prompt_tokens_per_s:10.1f} tokens/s",
        f"requests    {report.requests_per_s:10.2f} /s",
        "",
        f"{'':<20}{'mean':>10}{'p50':>10}{'p90':>10}{'p99':>10}",
        _row("first token, ms", report.ttft_s, 1000),
        _row("between tokens, ms", report.inter_token_s, 1000),
        _row("whole request, s", report.request_s, 1),
    ]
    if report.failed:
        lines += ["", f"{report.failed} requests failed; the first: {report.first_error}"]
    return lines


def _row(name: str, spread: Spread | None, scale: float) -> str:
    if spread is None:
        return f"{name:<20}{'-':>10}{'-':>10}{'-':>10}{'-':>10}"
    values = (spread.mean, spread.p50, spread.p90, spread.p99)
    return f"{name:<20}" + "".join(f"{value * scale:10.2f}" for value in values)


async def _bench_url(url: str, plan: LoadPlan, warmup: int, flags: dict[str, Any], progress: StageProgress) -> Report:
    from millpond.cli.bench.remote import RemoteOptions, connect

    options = RemoteOptions(flags["model_name"], flags["chat"], _read_key(flags["key_file"]), flags["ignore_eos"])
    return await _run(await connect(url, options), plan, warmup, progress)


async def _bench_model(config: EngineConfig, plan: LoadPlan, warmup: int, progress: StageProgress) -> Report:
    from millpond.cli.bench.local import LocalTarget
    from millpond.inference.engine.client import AsyncEngine

    engine = await AsyncEngine.start(config, progress)
    try:
        return await _run(LocalTarget(engine), plan, warmup, progress)
    finally:
        await engine.close()


async def _run(target: Target, plan: LoadPlan, warmup: int, progress: StageProgress) -> Report:
    from millpond.cli.bench.load import run_load
    from millpond.cli.bench.measure import make_report

    if warmup:
        # Another seed: the measured prompts must not find themselves in the prefix cache.
        small = dataclasses.replace(plan, requests=warmup, rate=None, seed=plan.seed + 7919, output_tokens=4)
        progress("Warming up", 0.0)
        first = await run_load(target, small)
        broken = next((trace.error for trace in first if trace.error), None)
        if broken is not None:
            raise MillpondError(f"{target.name} failed the first request: {broken}")
    traces = await run_load(target, plan, on_done=lambda done: progress("Measuring", done / plan.requests))
    return make_report(target.name, plan.concurrency, traces)


def _read_key(file: str | None) -> str | None:
    if file is None:
        return None
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The key file {file} cannot be read: {error}.", fix="Check --key-file.") from error
