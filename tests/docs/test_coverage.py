"""Everything a user can name stands in the docs, and what the docs name exists."""

from __future__ import annotations

import dataclasses
import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest

from millpond.api.request import EngineStats
from millpond.cli.main import COMMANDS, cli
from millpond.config.load import load_config
from millpond.config.schema import EngineConfig
from millpond.serve.http.app import make_app
from millpond.serve.metrics import ServeMetrics
from millpond.serve.settings import ServeSettings
from tools import reference

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
GUIDES = [page for page in PAGES if "reference" not in page.parts]


def read_reference(name: str) -> str:
    return (ROOT / "docs/reference" / name).read_text()


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[list[str]]:
    """The words of every millpond command in the page's plain blocks, variables and pipes cut off."""
    found = []
    for line in "\n".join(blocks(page, "")).splitlines():
        for part in line.split(" | "):
            command = re.sub(r"^([A-Z_]+=\S+ )*", "", part.strip())
            if re.match(r"millpond [a-z-]", command):
                found.append(shlex.split(re.split(r"\s{3,}", command)[0])[1:])
    return found


@pytest.mark.parametrize("name", reference.PAGES)
def test_reference_pages_are_what_the_code_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert reference.PAGES[name]().strip() in read_reference(name), "run `make docs`"


def test_every_setting_is_documented() -> None:
    page = read_reference("settings.md")
    for section in dataclasses.fields(EngineConfig):
        text = page.split(f"## [{section.name}]")[1].split("\n## ")[0]
        names = [field.name for field in dataclasses.fields(section.default_factory())]  # type: ignore[misc,arg-type]
        assert [name for name in names if f"| `{name}` |" not in text] == []


def test_every_route_is_documented() -> None:
    page = read_reference("routes.md")
    paths = {route.path.replace(":path", "") for route in make_app(None, ServeSettings()).routes}  # type: ignore[attr-defined]
    assert {path for path in paths if f"`{path}`" not in page} == set()


def test_every_metric_is_documented() -> None:
    served = ServeMetrics().page(None, EngineStats(), ready=True)
    names = set(re.findall(r"^# TYPE (\S+)", served, re.MULTILINE))
    page = read_reference("metrics.md")
    assert {name for name in names if f"`{name}`" not in page} == set()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_place_in_the_guide_and_the_reference(name: str) -> None:
    assert f"\n## {name}\n" in (ROOT / "docs/guide/command-line.md").read_text()
    assert f"\n## millpond {name}\n" in read_reference("cli.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_inside_the_repository_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    local = [target for target in targets if not target.startswith(("http://", "https://"))]
    assert [target for target in local if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_commands_in_the_guides_parse(page: Path) -> None:
    for words in commands(page):
        command = cli.get_command(click.Context(cli), words[0])
        assert command is not None, words
        rest = words[1:]
        if isinstance(command, click.Group):
            command = command.get_command(click.Context(command), rest.pop(0))
            assert command is not None, words
        command.make_context(words[0], rest)


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_config_files_in_the_guides_load(page: Path, tmp_path: Path) -> None:
    for text in blocks(page, "toml"):
        if "[project]" in text:
            continue
        file = tmp_path / "config.toml"
        file.write_text(text)
        assert load_config(file, environment={}) != EngineConfig() or not tomllib.loads(text)


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_python_in_the_guides_compiles(page: Path) -> None:
    for text in blocks(page, "python"):
        compile(text, str(page), "exec")
