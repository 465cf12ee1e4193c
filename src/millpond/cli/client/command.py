"""The commands of `millpond client`: one a protocol. Text is printed as it comes, tensors a line each."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from millpond.cli.options import sampling_options, take_given_sampling

if TYPE_CHECKING:
    from millpond.cli.client.web import Web

_KEY_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group()
def client() -> None:
    """Sends a request to a server, in any of the protocols."""


def _url(default: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option("--url", default=default, show_default=True, help="The server.")


_stream = click.option("--stream/--no-stream", default=True, help="Print the answer as it comes, or when it is whole.")
_key_file = click.option("--api-key-file", type=_KEY_FILE, help="File whose first line is the API key.")


@client.command(params=sampling_options())
@click.argument("prompt")
@_url("http://127.0.0.1:8000")
@click.option("--model", help="Name of the model; without it the first that the server lists.")
@click.option("--chat", is_flag=True, help="Send the prompt as a user's message.")
@_stream
@_key_file
def openai(
    prompt: str, url: str, model: str | None, chat: bool, stream: bool, api_key_file: Path | None, **flags: Any
) -> None:
    """Completes PROMPT over the OpenAI API."""
    from millpond.cli.client.text import ask_openai

    sampling = take_given_sampling(flags)
    web = _web(url, api_key_file)
    _print_text(ask_openai(web, prompt, model=model, is_chat=chat, streams=stream, sampling=sampling))


@client.command(params=sampling_options())
@click.argument("prompt")
@_url("http://127.0.0.1:8080")
@_stream
@_key_file
def tgi(prompt: str, url: str, stream: bool, api_key_file: Path | None, **flags: Any) -> None:
    """Completes PROMPT over TGI's API."""
    from millpond.cli.client.text import ask_tgi

    sampling = take_given_sampling(flags)
    _print_text(ask_tgi(_web(url, api_key_file), prompt, streams=stream, sampling=sampling))


@client.command()
@click.argument("model")
@click.option("--url", help="The server: http://HOST:PORT, or HOST:PORT with --grpc.")
@click.option("--grpc", "is_grpc", is_flag=True, help="Use gRPC.")
@click.option("-i", "--input", "inputs", multiple=True, metavar="NAME=VALUE", help="An input; VALUE is JSON or text.")
@click.option("-p", "--parameter", "parameters", multiple=True, metavar="NAME=VALUE", help="A request parameter.")
@click.option("--version", default="", help="Version of the model; without it the newest.")
@click.option("--stream", is_flag=True, help="Print every response; decoupled models need it.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a response.")
def triton(
    model: str,
    url: str | None,
    is_grpc: bool,
    inputs: tuple[str, ...],
    parameters: tuple[str, ...],
    version: str,
    stream: bool,
    as_json: bool,
) -> None:
    """Asks MODEL over Triton's protocol (KServe v2).

    An input's datatype and number of dimensions are the model's own: -i text_input=Hello -i INPUT0='[1, 2, 3]'
    """
    from millpond.cli.client import tensors
    from millpond.cli.client.triton import GrpcTriton, HttpTriton, TritonClient

    asked: TritonClient
    if is_grpc:
        asked = GrpcTriton(url or "127.0.0.1:8001", model, version)
    else:
        asked = HttpTriton(_web(url or "http://127.0.0.1:8000", None), model, version)
    given = _parameters(parameters)
    for outputs in asked.stream(inputs, given) if stream else [asked.infer(inputs, given)]:
        if as_json:
            values = {output.name: tensors.as_json(output) for output in outputs}
            click.echo(json.dumps(values, ensure_ascii=False))
        else:
            click.echo("\n".join(tensors.show(output) for output in outputs))


@client.command()
@click.argument("servable")
@click.argument("method")
@click.argument("instances")
@click.option("--url", help="The server: http://HOST:PORT, or HOST:PORT with --grpc.")
@click.option("--grpc", "is_grpc", is_flag=True, help="Use gRPC.")
@click.option("--version", type=click.IntRange(0), default=0, help="Version of the servable; 0 is the newest.")
def mindspore(servable: str, method: str, instances: str, url: str | None, is_grpc: bool, version: int) -> None:
    """Asks METHOD of SERVABLE over MindSpore Serving's protocol.

    INSTANCES is JSON: {"x1": [1, 2]}, or a list of such objects. Prints a line of JSON an instance.
    """
    from millpond.cli.client.mindspore import ask_grpc, ask_rest, read_instances

    read = read_instances(instances)
    if is_grpc:
        answers = ask_grpc(url or "127.0.0.1:5500", servable, method, version, read)
    else:
        answers = ask_rest(_web(url or "http://127.0.0.1:1500", None), servable, method, version, read)
    for answer in answers:
        click.echo(json.dumps(answer, ensure_ascii=False))


def _web(url: str, key_file: Path | None) -> Web:
    from millpond.cli.client.web import Web

    lines = key_file.read_text(encoding="utf-8").split() if key_file is not None else []
    headers: Mapping[str, str] = {"Authorization": f"Bearer {lines[0]}"} if lines else {}
    return Web(url, headers)


def _print_text(pieces: Iterator[str]) -> None:
    for piece in pieces:
        click.echo(piece, nl=False)
    click.echo()


def _parameters(flags: tuple[str, ...]) -> dict[str, Any]:
    read: dict[str, Any] = {}
    for flag in flags:
        name, sign, text = flag.partition("=")
        if not sign:
            raise click.UsageError(f"'{flag}' is no parameter. Write NAME=VALUE.")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        read[name] = value if isinstance(value, bool | int | float | str) else text
    return read
