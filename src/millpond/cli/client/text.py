"""Prompts over the OpenAI API and over TGI's: the bodies, and the text in the answers.

Knows the two protocols' names for the same things; `web` moves the bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from millpond.cli.client.web import ServerError

if TYPE_CHECKING:
    from millpond.cli.client.web import Web

_TGI_NAMES = {"max_tokens": "max_new_tokens"}
_TGI_FIELDS = frozenset(
    ("max_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "frequency_penalty", "stop", "seed")
)


def ask_openai(
    web: Web, prompt: str, *, model: str | None, is_chat: bool, streams: bool, sampling: Mapping[str, Any]
) -> Iterator[str]:
    """Yields the answer's text, in pieces when it is streamed."""
    body: dict[str, Any] = {"model": model or first_model(web), **sampling}
    if is_chat:
        path, body["messages"] = "/v1/chat/completions", [{"role": "user", "content": prompt}]
    else:
        path, body["prompt"] = "/v1/completions", prompt
    if not streams:
        yield _openai_text(web.ask("POST", path, body))
        return
    for event in web.events(path, {**body, "stream": True}):
        yield _openai_text(event)


def first_model(web: Web) -> str:
    """Returns the name of the model that a server lists first.

    Raises:
        ServerError: It lists none.
    """
    try:
        return str(web.ask("GET", "/v1/models")["data"][0]["id"])
    except (LookupError, TypeError):
        raise ServerError("The server lists no model.", fix="Name one with --model.") from None


def ask_tgi(web: Web, prompt: str, *, streams: bool, sampling: Mapping[str, Any]) -> Iterator[str]:
    """Yields the answer's text, in pieces when it is streamed.

    Raises:
        ServerError: A parameter has no name in this protocol.
    """
    unknown = next((name for name in sampling if name not in _TGI_FIELDS), None)
    if unknown is not None:
        raise ServerError(f"TGI has no parameter {unknown}.", fix="Leave it out, or use `millpond client openai`.")
    parameters = {_TGI_NAMES.get(name, name): value for name, value in sampling.items()}
    if parameters.get("temperature") == 0:  # greedy has no temperature here
        del parameters["temperature"]
    elif "temperature" in parameters:
        parameters["do_sample"] = True
    body = {"inputs": prompt, "parameters": parameters}
    if not streams:
        yield str(web.ask("POST", "/generate", body)["generated_text"])
        return
    for event in web.events("/generate_stream", body):
        if not event["token"]["special"]:
            yield str(event["token"]["text"])


def _openai_text(document: Mapping[str, Any]) -> str:
    """The text of the first choice in a whole answer or in a piece of one."""
    choices = document.get("choices") or [{}]
    said = choices[0].get("message") or choices[0].get("delta") or choices[0]
    return str(said.get("content") or said.get("text") or "")
