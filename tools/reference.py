"""Writes docs/reference/ from the code: settings, command line, environment, routes, metrics.

`python tools/reference.py` writes the pages, `--check` fails when a page is not what the code says. Each page is made
by one function from the table that the code itself uses, so that there is nothing to keep in step by hand.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from millpond.cli.main import cli
from millpond.cli.options import SettingOption
from millpond.config.env import VARIABLES
from millpond.config.fields import SectionInfo, SettingField, sections
from millpond.serve.http.app import ROUTES
from millpond.serve.http.openapi import make_document
from millpond.serve.metrics import metric_table

PLACE = Path("docs/reference")
_NOTE = "<!-- Written by tools/reference.py from the code: change it there, then run `make docs`. -->"


def main(arguments: list[str]) -> int:
    """Writes the pages or checks them; returns 1 when a checked page is out of date."""
    stale = []
    for name, make in PAGES.items():
        path = PLACE / name
        text = f"{_NOTE}\n\n{make().strip()}\n"
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(str(path))
        if "--check" not in arguments:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path}")
    if stale and "--check" in arguments:
        print(f"Out of date: {', '.join(stale)}. Run `make docs` and commit the result.")
        return 1
    return 0


def settings_page() -> str:
    """Every setting: key, flag, variable, type, default."""
    return "\n\n".join(["# Settings", _SETTINGS_INTRO, *(_section(info) for info in sections())])


def cli_page() -> str:
    """Every command with its arguments and its own options."""
    return "\n\n".join(
        ["# Command line", *_command("millpond", cli, click.Context(cli, info_name="millpond", **cli.context_settings))]
    )


def environment_page() -> str:
    """Every environment variable that is read."""
    rows = [(f"`{variable.name}`", variable.help, variable.default) for variable in VARIABLES]
    fields = [field for section in sections() for field in section.fields]
    setting_rows = [(f"`{field.variable}`", f"`{field.path}`") for field in fields]
    return "\n\n".join(
        [
            "# Environment variables",
            "A name that starts with `MILLPOND_` and stands in neither table is an error.",
            table(("Variable", "What", "Default"), rows),
            "Every [setting](settings.md) has a variable, which wins over the config file and loses to a flag:",
            table(("Variable", "Setting"), setting_rows),
        ]
    )


def routes_page() -> str:
    """Every HTTP route, and the fields of every body."""
    rows = [(f"`{route.method}`", f"`{route.path}`", route.text) for route in ROUTES]
    parts = ["# HTTP routes", _ROUTES_INTRO, table(("Method", "Path", "What"), rows)]
    document = make_document("")
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if "requestBody" in operation:
                reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
                schema = document["components"]["schemas"][reference.rpartition("/")[2]]
                parts += [f"## {method.upper()} {path}", _fields(schema)]
    return "\n\n".join(parts)


def metrics_page() -> str:
    """Every metric of /metrics."""
    rows = [(f"`{name}`", kind, labels, text) for name, kind, labels, text in metric_table()]
    return "\n\n".join(["# Metrics", "Served at `/metrics`.", table(("Name", "Kind", "Labels", "What"), rows)])


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Returns a Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _fields(schema: dict[str, Any]) -> str:
    required = set(schema.get("required", ()))
    rows = []
    for name, field in schema["properties"].items():
        kinds = [kind for kind in field.get("anyOf", [field]) if kind.get("type") != "null"]
        texts = [kind["description"] for kind in (field, *kinds) if "description" in kind]
        needed = "yes" if name in required else ""
        rows.append((f"`{name}`", " or ".join(map(_kind, kinds)), needed, texts[0] if texts else ""))
    return table(("Field", "Type", "Required", "What"), rows)


def _kind(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        inner = _kind(schema.get("items") or {})
        return f"list of ({inner})" if " or " in inner else f"list of {inner}"
    if "anyOf" in schema:
        return " or ".join(map(_kind, schema["anyOf"]))
    # A limit that is only the widest number of the wire is no news.
    wide = (1 << 31) - 1
    low, high = schema.get("minimum", schema.get("exclusiveMinimum", -wide)), schema.get("maximum", wide)
    limits = [f"{'above' if 'exclusiveMinimum' in schema else 'from'} {low:g}"] if low > -wide else []
    limits += [f"to {high:g}"] if high < wide else []
    return " ".join([str(schema.get("type", "any")), *limits])


def _section(info: SectionInfo) -> str:
    rows = [
        (f"`{field.name}`", _type(field), field.setting.help, field.setting.default, _also(field))
        for field in info.fields
    ]
    return f"## [{info.name}]\n\n{info.help}\n\n" + table(("Key", "Type", "What", "Default", "Short flag"), rows)


def _type(field: SettingField) -> str:
    if field.choices:
        return " or ".join(f"`{choice}`" for choice in field.choices)
    word = {int: "whole number", float: "number", bool: "true or false", str: "text"}[field.kind]
    low, high = field.setting.minimum, field.setting.maximum
    limits = [f"from {low:g}"] if low is not None else []
    limits += [f"to {high:g}"] if high is not None else []
    return " ".join([f"{word}, or text with a unit (4GiB)" if field.is_size else word, *limits])


def _also(field: SettingField) -> str:
    return ", ".join(f"`{alias}`" for alias in field.setting.alias)


def _command(path: str, command: click.Command, context: click.Context) -> Iterator[str]:
    usage = command.get_usage(context).removeprefix("Usage: ")
    yield f"## {path}\n\n```\n{' '.join(usage.split())}\n```\n\n{_paragraphs(command)}"
    own = [param for param in command.get_params(context) if not isinstance(param, SettingOption | click.Argument)]
    records = [record for param in own if (record := param.get_help_record(context)) is not None]
    if records:
        yield table(("Option", "What"), [(f"`{names}`", " ".join(text.split())) for names, text in records])
    taken = [param.field.section for param in command.params if isinstance(param, SettingOption)]
    if taken:
        links = ", ".join(f"[{name}](settings.md#{name})" for name in dict.fromkeys(taken))
        yield f"Takes a flag for every setting of: {links}."
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from _command(f"{path} {name}", child, click.Context(child, parent=context, info_name=name))


def _paragraphs(command: click.Command) -> str:
    return "\n\n".join(" ".join(part.split()) for part in (command.help or "").split("\n\n"))


_SETTINGS_INTRO = """\
A setting is a key of the TOML file (`--config FILE`), a variable and a flag; a variable wins over the file, a flag over
both. `dtype` of section `cache` is

```toml
[cache]
dtype = "bfloat16"
```

or `MILLPOND_CACHE_DTYPE=bfloat16` or `--cache.dtype bfloat16`. Nothing needs to be set: the column Default says what is
decided then. An unknown key is an error."""

_ROUTES_INTRO = """\
Errors have the OpenAI form: `{"error": {"message", "type", "param", "code"}}`. The running server describes its routes
at `/openapi.json`."""

PAGES: dict[str, Callable[[], str]] = {
    "settings.md": settings_page,
    "cli.md": cli_page,
    "environment.md": environment_page,
    "routes.md": routes_page,
    "metrics.md": metrics_page,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
