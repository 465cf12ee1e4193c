"""`text-generation-launcher`: starts the server with the flags and variables of the command of that name.

What the flags mean stands in `tgi_flags.py`. It says in the launcher's words when the server is up, which scripts wait
for, and binds loopback unless --hostname is given. Millpond's own port takes a free number on loopback.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import click

from millpond.base.errors import MillpondError
from millpond.cli.options import DEFAULT_MODEL
from millpond.cli.tgi_flags import DEFAULT_PORT, FLAGS, map_flags
from millpond.config import env
from millpond.config.load import load_config, replace_settings

if TYPE_CHECKING:
    from millpond.config.schema import EngineConfig
    from millpond.serve.ports import Port

_OWN_PORT = {"serve.host": "127.0.0.1", "serve.port": "0"}


def _options() -> list[click.Parameter]:
    """Returns an option for every flag."""
    options: list[click.Parameter] = []
    for flag in FLAGS:
        names = [flag.variable.lower(), f"--{flag.name}"] + ([f"-{flag.short}"] if flag.short else [])
        text = f"Sets {', '.join(flag.settings)}." if flag.settings else f"Changes nothing: {flag.idle}."
        if flag.refused and not flag.settings:
            text = f"Refused: {flag.refused}."
        if flag.is_switch:
            options.append(click.Option(names, is_flag=True, flag_value="true", type=str, default=None, help=text))
        else:
            options.append(click.Option(names, help=text))
    return options


def _print_version(context: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"text-generation-launcher (millpond {version('millpond')})")
        context.exit()


def _print_environment(context: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"millpond {version('millpond')}, Python {platform.python_version()}, {platform.platform()}")
        context.exit()


@click.command(params=_options(), context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-V", "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version)
@click.option("-e", "--env", is_flag=True, is_eager=True, expose_value=False, callback=_print_environment)
@click.pass_context
def text_generation_launcher(context: click.Context, /, **flags: Any) -> None:
    """Serves a model as Text Generation Inference does.

    The flags are those of TGI's launcher, and each has its variable (--model-id: MODEL_ID). Settings of Millpond itself
    come from a config file or MILLPOND_ variables; `millpond serve --help` lists them.
    """
    given = {flag.name: flags[flag.variable.lower()] for flag in FLAGS if flags[flag.variable.lower()] is not None}
    config = launcher_config(launcher_variables() | given, load_config(flags=_OWN_PORT))
    if config.model.path is None:
        config = replace_settings(config, {"model.path": DEFAULT_MODEL})
    from millpond.serve.launch import run_server

    click.echo("Starting Webserver")
    context.exit(run_server(config, _announce))


def launcher_variables() -> dict[str, str]:
    """Returns the flags that the environment sets, by name."""
    variables = {flag.variable: flag.name for flag in FLAGS if flag.has_variable}
    return {variables[variable]: text for variable, text in env.other_values(variables).items()}


def launcher_config(given: Mapping[str, str], config: EngineConfig, kept: Collection[str] = ()) -> EngineConfig:
    """Puts the launcher's flags over a config, and says which of them change nothing.

    Args:
        given: The launcher's flags, by name.
        config: What they are put over.
        kept: Settings that stay as they are.

    Raises:
        click.UsageError: One of them cannot be served.
        ConfigError: A value does not fit.
    """
    mapped = map_flags(given)
    for notice in mapped.notices:
        click.echo(notice, err=True)
    if "tgi.port" not in mapped.settings and config.tgi.port is None:
        mapped.settings["tgi.port"] = DEFAULT_PORT
    return replace_settings(config, {path: value for path, value in mapped.settings.items() if path not in kept})


def _announce(port: Port) -> str:
    if port.name == "TGI shard":
        return f"Server started at {port.address}"
    return f"Connected: {port.name} is at {port.address}"


def main() -> None:
    """The console script."""
    try:
        text_generation_launcher()
    except MillpondError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
