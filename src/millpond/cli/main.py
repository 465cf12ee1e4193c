"""The entry point `millpond`: finds the command's module when it is asked for, and turns errors into a sentence.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted. Command modules import only click and the settings at
import time, so that `--help` answers at once.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

import click

from millpond.base.errors import MillpondError
from millpond.base.suggest import did_you_mean
from millpond.config import env

COMMANDS = {
    "serve": "millpond.cli.serve:serve",
    "generate": "millpond.cli.generate:generate",
    "chat": "millpond.cli.chat:chat",
    "bench": "millpond.cli.bench.command:bench",
    "models": "millpond.cli.models:models",
    "repository": "millpond.cli.repository.command:repository",
    "client": "millpond.cli.client.command:client",
    "jobs": "millpond.cli.jobs.command:jobs",
    "deploy": "millpond.cli.deploy.command:deploy",
    "arena": "millpond.cli.arena.command:arena",
    "doctor": "millpond.cli.doctor.command:doctor",
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are needed; a mistyped one gets a suggestion."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        target = COMMANDS.get(cmd_name)
        if target is None:
            return None
        module, _, attribute = target.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            raise click.UsageError(f"There is no command '{name}'. {did_you_mean(name, COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)


def _print_version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"millpond {version('millpond')}")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="The version."
)
def cli() -> None:
    """Turns a model's checkpoint into a fast service on the machine at hand.

    MODEL is a directory, a .gguf file, or a name that `millpond models list` shows. Every setting is also a key of the
    config file (--config FILE) and a MILLPOND_ variable.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    try:
        result = cli.main(args=arguments, prog_name="millpond", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        return 130
    except BrokenPipeError:
        # The reader went away. Leaving stdout open would raise again when the interpreter flushes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MillpondError as error:
        return _fail(str(error))
    except Exception as error:
        return _fail(f"Unexpected {type(error).__name__}: {error} This is a bug; MILLPOND_DEBUG=1 shows where.")
    return result if isinstance(result, int) else 0


def arena() -> int:
    """Runs `millpond arena` under the name `arena`."""
    return main(["arena", *sys.argv[1:]])


def _fail(sentence: str) -> int:
    if env.is_debug():
        import traceback

        traceback.print_exc()
    click.echo(f"Error: {sentence}", err=True)
    return 1
