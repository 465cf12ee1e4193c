from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
from click.testing import CliRunner

from millpond.api.request import SamplingParams
from millpond.cli.bench.command import bench
from millpond.cli.chat import chat
from millpond.cli.doctor.command import doctor
from millpond.cli.generate import generate
from millpond.cli.options import (
    SAMPLING_FLAGS,
    SettingsCommand,
    sampling_options,
    setting_options,
    take_config,
    take_sampling,
)
from millpond.cli.serve import serve
from millpond.config.fields import sections, setting_fields
from millpond.config.schema import EngineConfig

ENGINE_SECTIONS = ("model", "cache", "scheduler", "speculation", "runtime")

ALL_SECTIONS = tuple(section.name for section in sections())


def read_config(*arguments: str) -> EngineConfig:
    taken: list[EngineConfig] = []

    @click.command(cls=SettingsCommand, params=setting_options(*ALL_SECTIONS))
    @click.argument("model", required=False)
    def command(model: str | None, **flags: Any) -> None:
        taken.append(take_config(flags, model))
        assert flags == {}

    command.main(list(arguments), standalone_mode=False)
    return taken[0]


def example(path: str) -> str:
    field = setting_fields()[path]
    return field.choices[-1] if field.choices else {int: "33", float: "1.5", bool: "off", str: "word"}[field.kind]


@pytest.mark.parametrize("path", setting_fields())
def test_every_setting_has_a_flag_that_sets_it(path: str) -> None:
    section, _, name = path.partition(".")
    assert getattr(getattr(read_config(f"--{path}", example(path)), section), name) is not None


@pytest.mark.parametrize("path", [path for path, field in setting_fields().items() if field.setting.alias])
def test_an_alias_sets_the_same(path: str) -> None:
    for alias in setting_fields()[path].setting.alias:
        assert read_config(alias, example(path)) == read_config(f"--{path}", example(path))


def test_no_two_flags_are_the_same() -> None:
    names = [name for option in setting_options(*ALL_SECTIONS) + sampling_options() for name in option.opts]
    assert len(names) == len(set(names))


def test_the_default_model_is_taken_when_none_is_named() -> None:
    assert read_config().model.path == "smollm2-135m"


def test_the_argument_names_the_model() -> None:
    assert read_config("some/dir").model.path == "some/dir"


def test_the_argument_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLPOND_MODEL_PATH", "other")
    assert read_config("some/dir").model.path == "some/dir"


def test_the_config_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "m.toml"
    file.write_text('[model]\npath = "from-file"\n[serve]\nport = 9\n')
    config = read_config("--config", str(file), "--port", "10")
    assert (config.model.path, config.serve.port) == ("from-file", 10)


def test_help_groups_settings_by_section_and_names_their_defaults() -> None:
    @click.command(cls=SettingsCommand, params=setting_options("model", "cache"))
    def command(**_: Any) -> None: ...

    shown = CliRunner().invoke(command, ["--help"], terminal_width=120).output
    assert "Settings: cache (The KV cache):" in shown
    assert "--cache.dtype auto|float32|bfloat16" in shown
    assert "Default: int8 for w8a8, else the model's." in " ".join(shown.split())
    assert "--serve.port" not in shown


def test_sampling_flags_are_fields_of_the_parameters() -> None:
    known = {field.name for field in msgspec.structs.fields(SamplingParams)}
    assert {flag.name for flag in SAMPLING_FLAGS} <= known


def test_sampling_flags_win_over_the_commands_defaults() -> None:
    flags = {flag.name: None for flag in SAMPLING_FLAGS} | {"temperature": 0.0, "stop": ("a", "b")}
    params = take_sampling(flags, temperature=0.7, max_tokens=128)
    assert (params.temperature, params.max_tokens, params.stop) == (0.0, 128, ("a", "b"))


def test_every_setting_is_a_flag_of_serve_and_those_of_an_engine_are_of_all_that_start_one() -> None:
    flags = {path: field.flag for path, field in setting_fields().items()}
    engine = {flag for path, flag in flags.items() if path.split(".")[0] in ENGINE_SECTIONS}
    wanted = {serve: set(flags.values()), generate: engine, chat: engine, bench: engine, doctor: engine}
    for command, expected in wanted.items():
        taken = {name for param in command.params for name in param.opts}
        assert not expected - taken, command.name
