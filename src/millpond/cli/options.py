"""Flags made from the settings table, and the sampling flags; the help of both has no second source.

Gives commands their parameters (`setting_options`, `sampling_options`) and reads them back (`take_config`,
`take_sampling`). Knows no command.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from millpond.base.errors import ConfigError
from millpond.config.fields import SettingField, sections, setting_fields
from millpond.config.load import check_value, load_config
from millpond.config.schema import EngineConfig

if TYPE_CHECKING:
    from millpond.api.request import SamplingParams

DEFAULT_MODEL = "smollm2-135m"

_METAVARS = {int: "N", float: "X", bool: "on|off", str: "TEXT"}


class SettingType(click.ParamType[object]):
    """Reads a flag's text the way the config file and the environment are read."""

    def __init__(self, field: SettingField) -> None:
        self.field = field
        self.name = "|".join(field.choices) or ("SIZE" if field.is_size else _METAVARS[field.kind])

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> object:
        try:
            return check_value(self.field, value, self.field.flag)
        except ConfigError as error:
            raise click.BadParameter(str(error).removeprefix(f"{self.field.flag}: "), ctx, param) from None

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return self.name


class SettingOption(click.Option):
    """A flag that sets one setting; `--help` lists it under its section."""

    def __init__(self, field: SettingField) -> None:
        default = f" Default: {field.setting.default}." if field.setting.default else ""
        names = [_parameter_name(field), *field.setting.alias, field.flag]
        super().__init__(names, type=SettingType(field), help=field.setting.help + default)
        self.field = field


class SettingsCommand(click.Command):
    """A command whose `--help` groups the settings by section, after its own options."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {"Options": []}
        titles = {section.name: f"Settings: {section.name} ({section.help.rstrip('.')})" for section in sections()}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and not isinstance(param, click.Argument):
                title = titles[param.field.section] if isinstance(param, SettingOption) else "Options"
                groups.setdefault(title, []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)


def setting_options(*section_names: str) -> list[click.Parameter]:
    """Returns --config and a flag for every setting of the sections, for a command's `params`."""
    config_help = "TOML file with settings; flags win over variables, variables over the file."
    option = click.Option(["config_file", "--config"], metavar="FILE", type=click.Path(), help=config_help)
    chosen = [section for section in sections() if section.name in section_names]
    return [option, *(SettingOption(field) for section in chosen for field in section.fields)]


def take_config(flags: dict[str, Any], model: str | None, *, needs_model: bool = True) -> EngineConfig:
    """Takes the setting flags out of `flags` and merges them with file and environment.

    Args:
        flags: What click parsed; what is no setting stays in it.
        model: The MODEL argument; the default model is used when nothing names one.
        needs_model: False when there is no default model beside a model repository.

    Raises:
        click.UsageError: MODEL and --model name different models.
        ConfigError: The file or the environment is wrong.
    """
    given = {path: flags.pop(_parameter_name(field), None) for path, field in setting_fields().items()}
    if model and given["model.path"] not in (None, model):
        raise click.UsageError(f"MODEL is '{model}' but --model is '{given['model.path']}'. Give one of them.")
    config = load_config(flags.pop("config_file"), flags=given)
    path = model or config.model.path
    if path is None and (needs_model or config.repository.path is None):
        path = DEFAULT_MODEL
    return replace(config, model=replace(config.model, path=path))


@dataclass(frozen=True, slots=True)
class SamplingFlag:
    """One field of `SamplingParams` as a flag; the flag is the field's name with dashes."""

    name: str
    type: click.ParamType[Any]
    metavar: str
    help: str
    multiple: bool = False


SAMPLING_FLAGS = (
    SamplingFlag("max_tokens", click.IntRange(1), "N", "Most tokens to generate."),
    SamplingFlag("temperature", click.FloatRange(0), "X", "0 is greedy; higher is more varied."),
    SamplingFlag("top_k", click.IntRange(0), "N", "Choose among the K most likely tokens; 0: all."),
    SamplingFlag(
        "top_p", click.FloatRange(0, 1, min_open=True), "X", "Choose among the tokens that make up this share."
    ),
    SamplingFlag("min_p", click.FloatRange(0, 1), "X", "Drop tokens below this share of the most likely one."),
    SamplingFlag("repetition_penalty", click.FloatRange(0, min_open=True), "X", "Above 1: repeats become less likely."),
    SamplingFlag(
        "presence_penalty", click.FloatRange(-2, 2), "X", "Taken from the logit of every token already there."
    ),
    SamplingFlag("frequency_penalty", click.FloatRange(-2, 2), "X", "The same, times how often it is there."),
    SamplingFlag("stop", click.STRING, "TEXT", "Stop before this text; may be given several times.", multiple=True),
    SamplingFlag("min_tokens", click.IntRange(0), "N", "Tokens before an end is allowed."),
    SamplingFlag("ignore_eos", click.BOOL, "on|off", "on: go past the model's own end."),
)


def sampling_options() -> list[click.Parameter]:
    """Returns the sampling flags, for a command's `params`."""
    return [
        click.Option(
            [f"--{flag.name.replace('_', '-')}"],
            type=flag.type,
            metavar=flag.metavar,
            help=flag.help,
            multiple=flag.multiple,
        )
        for flag in SAMPLING_FLAGS
    ]


def take_sampling(flags: dict[str, Any], **defaults: Any) -> SamplingParams:
    """Takes the sampling flags out of `flags`; what was not given is the command's default, then that of the type."""
    from millpond.api.request import SamplingParams

    return SamplingParams(**{**defaults, **take_given_sampling(flags)})


def take_given_sampling(flags: dict[str, Any]) -> dict[str, Any]:
    """Takes the sampling flags out of `flags` and returns those that were given, by name."""
    taken = {flag.name: flags.pop(flag.name) for flag in SAMPLING_FLAGS}
    return {name: value for name, value in taken.items() if value not in (None, ())}


def _parameter_name(field: SettingField) -> str:
    return field.path.replace(".", "__")
