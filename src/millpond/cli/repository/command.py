"""The commands of `millpond repository`: what a running server has loaded, and what a folder would load."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

if TYPE_CHECKING:
    from millpond.cli.client.web import Web

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FOLDER = click.Path(path_type=Path)
_url = click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="The server's Triton HTTP port.")
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON list.")


@click.group()
def repository() -> None:
    """Shows, checks, loads and unloads the models of a repository."""


@repository.command()
@_url
@click.option("--ready", is_flag=True, help="Only what answers.")
@_json
def ls(url: str, ready: bool, as_json: bool) -> None:
    """Lists what a running server has."""
    from millpond.cli.jobs.tables import table

    models = _web(url).ask("POST", "/v2/repository/index", {"ready": ready})
    if as_json:
        click.echo(json.dumps(models, indent=2))
        return
    fields = ("name", "version", "state", "reason")
    click.echo(table([name.upper() for name in fields], [[model.get(name, "") for name in fields] for model in models]))


@repository.command()
@click.argument("folder", type=_FOLDER)
@_json
@click.pass_context
def check(ctx: click.Context, folder: Path, as_json: bool) -> None:
    """Says what is wrong with the models in FOLDER, without loading them.

    Exit code 1 when something is.
    """
    import dataclasses

    from millpond.cli.repository.check import check_repository

    reports = check_repository(folder)
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(report) for report in reports], indent=2))
    else:
        for report in reports:
            versions = ", ".join(map(str, report.versions)) or "none"
            click.echo(f"{report.name}: {report.backend or 'unknown'}, versions {versions}")
            for fault in report.faults:
                click.echo(f"  {fault}")
        if not reports:
            click.echo("There is no model in it.")
    if not reports or any(report.faults for report in reports):
        ctx.exit(1)


@repository.command()
@click.argument("name")
@_url
@click.option("--config", type=_FILE, help="Configuration to use instead of the folder's, as JSON.")
@click.option("--file", "files", multiple=True, metavar="PATH=FILE", help="File to use as PATH in the model's folder.")
def load(name: str, url: str, config: Path | None, files: tuple[str, ...]) -> None:
    """Loads a model, or loads it again after a change."""
    parameters: dict[str, Any] = {}
    if config is not None:
        parameters["config"] = config.read_text(encoding="utf-8")
    for given in files:
        path, sign, local = given.partition("=")
        if not sign or not Path(local).is_file():
            raise click.UsageError(f"'{given}' names no file. Write PATH=FILE: 1/model.py=new_model.py")
        parameters[f"file:{path}"] = base64.b64encode(Path(local).read_bytes()).decode("ascii")
    _web(url).ask("POST", f"{_path(name)}/load", {"parameters": parameters})
    click.echo(f"{name} is loaded.")


@repository.command()
@click.argument("name")
@_url
@click.option("--dependents", is_flag=True, help="Unload the models that it is made of, too.")
def unload(name: str, url: str, dependents: bool) -> None:
    """Unloads a model; what it has accepted is finished."""
    _web(url).ask("POST", f"{_path(name)}/unload", {"parameters": {"unload_dependents": dependents}})
    click.echo(f"{name} is unloaded.")


@repository.command()
@click.argument("name")
@_url
@click.option("--openapi", "form", flag_value="openapi.json", help="Print an OpenAPI 3.1 document.")
@click.option("--proto", "form", flag_value="servable.proto", help="Print a proto file with typed messages.")
@click.option("--json", "form", flag_value="json", help="Print the methods as JSON.")
def describe(name: str, url: str, form: str | None) -> None:
    """Says how a loaded model is called: its methods, and the types of what they take and give."""
    path = f"/v2/docs/models/{quote(name, safe='')}"
    if form == "servable.proto":
        click.echo(_web(url).text(f"{path}/{form}"), nl=False)
        return
    document = _web(url).ask("GET", path if form in (None, "json") else f"{path}/{form}")
    if form is not None:
        click.echo(json.dumps(document, indent=2))
        return
    for method in document["methods"]:
        inputs, outputs = (", ".join(map(_tensor, method[side])) for side in ("inputs", "outputs"))
        click.echo(f"{method['name'] or name}({inputs}) -> {'stream of ' if method['streams'] else ''}{outputs}")
        for line in method["documentation"].splitlines():
            click.echo(f"  {line}".rstrip())


def _tensor(tensor: dict[str, Any]) -> str:
    shape = ", ".join("?" if dim == -1 else str(dim) for dim in tensor["shape"])
    kind = f"{tensor['datatype']}[{shape}]" if tensor["datatype"] else "any tensor"
    return f"{tensor['name']}: {kind}{' (optional)' if tensor['optional'] else ''}"


def _path(name: str) -> str:
    return f"/v2/repository/models/{quote(name, safe='')}"


def _web(url: str) -> Web:
    from millpond.cli.client.web import Web

    return Web(url)
