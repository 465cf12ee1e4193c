from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import types

import click
import pytest

from millpond.base.errors import CheckpointError, MillpondError
from millpond.cli import main as cli_main
from millpond.cli.main import COMMANDS, cli, main

HEAVY = (
    "torch",
    "rich",
    "starlette",
    "uvicorn",
    "transformers",
    "tokenizers",
    "numpy",
    "jinja2",
    "llguidance",
    "asyncio",
)


def add_command(monkeypatch: pytest.MonkeyPatch, raises: BaseException) -> None:
    @click.command()
    def broken() -> None:
        raise raises

    module = types.ModuleType("broken_command")
    module.broken = broken  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "broken_command", module)
    monkeypatch.setitem(cli_main.COMMANDS, "broken", "broken_command:broken")


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"], ["bench", "--help"], ["doctor", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = f"import sys; from millpond.cli.main import main; main({arguments}); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    assert "millpond" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"Usage: millpond {name}")


def test_python_dash_m_is_the_same_command() -> None:
    done = subprocess.run([sys.executable, "-m", "millpond", "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: millpond ")


def test_a_mistyped_command_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serv"]) == 2
    assert "Did you mean 'serve'?" in capsys.readouterr().err


def test_a_mistyped_flag_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--cache.dtyp", "auto"]) == 2
    assert "--cache.dtype" in capsys.readouterr().err


def test_a_wrong_value_of_a_flag_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--dtype", "bfloat"]) == 2
    shown = capsys.readouterr().err
    assert "'bfloat' is not one of auto, float32, bfloat16, int8" in shown
    assert "Did you mean 'bfloat16'?" in shown


def test_two_different_models_are_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "one", "--model", "two"]) == 2
    assert "Give one of them" in capsys.readouterr().err


def test_a_wrong_config_file_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--config", "nowhere.toml"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "Error: The config file nowhere.toml cannot be read: No such file or directory. Check --config."
    ]


def test_an_expected_error_is_a_sentence_and_its_fix(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_command(monkeypatch, CheckpointError("The file x.gguf ends early.", fix="Fetch it again."))
    assert main(["broken"]) == 1
    assert capsys.readouterr().err == "Error: The file x.gguf ends early. Fetch it again.\n"


def test_an_unexpected_error_shows_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_command(monkeypatch, RuntimeError("boom"))
    assert main(["broken"]) == 1
    shown = capsys.readouterr().err
    assert "boom" in shown
    assert "Traceback" not in shown


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MILLPOND_DEBUG", "1")
    add_command(monkeypatch, MillpondError("Something."))
    assert main(["broken"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    add_command(monkeypatch, KeyboardInterrupt())
    assert main(["broken"]) == 130


def test_commands_are_listed_in_the_order_of_the_table() -> None:
    assert cli.list_commands(click.Context(cli)) == list(COMMANDS)


def test_a_reader_that_goes_away_is_no_error_to_show() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "millpond", "doctor", "--quick", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 1


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"millpond {importlib.metadata.version('millpond')}\n"
