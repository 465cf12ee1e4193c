"""Chat messages to the text a model was trained on, by the Jinja template it came with.

Says what Hugging Face's `apply_chat_template` says, in a sandbox with a budget (template_guard.py). Whatever a
template or its messages do wrong is a `RequestError`; a template that does not compile is a `CheckpointError` at load.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2.exceptions import SecurityError

from millpond.base.errors import CheckpointError, RequestError
from millpond.inference.text.template_guard import BoundedEnvironment
from millpond.inference.text.template_limits import (
    MAX_INDENT,
    TemplateLimitError,
    check_size,
    check_widths,
    text_size,
)

MAX_SOURCE = 1 << 20  # characters of a template
_CONTINUE_TAG = "CONTINUE_FINAL_MESSAGE_TAG "
_RESERVED = frozenset({"messages", "tools", "add_generation_prompt"})
_REASONING = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """A model's chat template, compiled. Safe to share between threads.

    Args:
        templates: The template, or several by name: "default", and "tool_use" for requests that bring tools.
        special_tokens: Values of `bos_token`, `eos_token`, ... for the template.
        clock: Seconds that never go back, for the time limit.
        now: The local time, for templates that show the date.

    Raises:
        CheckpointError: A template cannot be compiled, or there is no default one.
    """

    def __init__(
        self,
        templates: str | Mapping[str, str],
        special_tokens: Mapping[str, str] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self.sources = {"default": templates} if isinstance(templates, str) else dict(templates)
        if "default" not in self.sources:
            raise CheckpointError(f"The model has chat templates ({', '.join(self.sources)}) but no default one.")
        self._special_tokens = dict(special_tokens or {})
        self._environment = _make_environment(clock, now)
        self._compiled = {name: self._compile(name, source) for name, source in self.sources.items()}

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        """Renders a chat. Encode the result with `add_special_tokens=False`: it has its special tokens.

        Args:
            messages: Objects with a role and content, as JSON has them.
            tools: JSON descriptions of the functions the model may call.
            add_generation_prompt: Whether the text ends where the assistant's answer begins.
            continue_final_message: Whether the text ends within the last message, for the model to go on with it.
            extra: More variables for the template, such as `enable_thinking`.

        Raises:
            RequestError: The template refuses the messages, fails on them, or does more work than it may.
        """
        if not messages:
            raise RequestError("The chat has no messages.", fix="Send at least one.", param="messages")
        if continue_final_message and add_generation_prompt:
            raise RequestError(
                "A final message cannot be both continued and answered.",
                fix="Set add_generation_prompt to false to continue it.",
                param="continue_final_message",
            )
        name = "tool_use" if tools is not None and "tool_use" in self._compiled else "default"
        try:
            chat = [_message(message) for message in messages]
            tail = _mark_final_message(chat, self.sources[name]) if continue_final_message else None
            variables = {**self._special_tokens, **_extra_variables(extra)}
            variables["messages"] = chat
            variables["tools"] = None if tools is None else _plain(tools)
            variables["add_generation_prompt"] = add_generation_prompt
            text = self._run(self._compiled[name], variables)
        except RequestError:
            raise
        except Exception as error:
            raise _render_error(error) from error
        return text if tail is None else _cut_final_message(text, tail)

    def _run(self, template: jinja2.Template, variables: dict[str, Any]) -> str:
        self._environment.start_budget()
        parts, size = [], 0
        for part in template.generate(variables):
            size += len(part)
            check_size(size)
            parts.append(part)
        return "".join(parts)

    def _compile(self, name: str, source: str) -> jinja2.Template:
        if len(source) > MAX_SOURCE:
            raise CheckpointError(f"The chat template {name!r} is longer than {MAX_SOURCE} characters.")
        try:
            return self._environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            message = f"The chat template {name!r} is not valid Jinja, line {error.lineno}: {error.message}."
            raise CheckpointError(message, fix="Give another one with --model.chat_template.") from error
        except Exception as error:
            message = f"The chat template {name!r} cannot be compiled: {type(error).__name__}."
            raise CheckpointError(message, fix="Give another one with --model.chat_template.") from error


def _make_environment(clock: Callable[[], float], now: Callable[[], datetime]) -> BoundedEnvironment:
    environment = BoundedEnvironment(clock)

    def strftime_now(pattern: str) -> str:
        check_size(len(pattern) * 64)
        return now().strftime(pattern)

    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment


def _raise_exception(message: object) -> None:
    raise _RefusedError(str(message)[:2000])


class _RefusedError(jinja2.TemplateError):
    """The template's own `raise_exception`."""


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own, does not escape HTML."""
    text_size(value)
    if indent is not None:
        check_widths([len(indent) if isinstance(indent, str) else indent])
        if (len(indent) if isinstance(indent, str) else indent) > MAX_INDENT:
            raise TemplateLimitError(f"tojson indents by more than {MAX_INDENT}")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A plain copy without its nulls, as templates test for keys; reasoning under every name templates read."""
    if not isinstance(message, Mapping):
        raise RequestError("A message is not an object.", fix="Send objects with role and content.", param="messages")
    copy = {str(key): _plain(value) for key, value in message.items() if value is not None}
    reasoning = next((copy[key] for key in _REASONING if key in copy), None)
    return copy if reasoning is None else {"thinking": reasoning, **copy, "reasoning_content": reasoning}


def _plain(value: Any) -> Any:
    """Only JSON's own types reach a template: methods of others are unknown to the sandbox."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    raise RequestError(f"A chat holds a {type(value).__name__}, which JSON does not have.", param="messages")


def _extra_variables(extra: Mapping[str, Any] | None) -> dict[str, Any]:
    variables: dict[str, Any] = _plain(extra or {})
    for name in variables:
        if name in _RESERVED or name.startswith("_"):
            raise RequestError(f"{name!r} is no variable a request may set.", param="chat_template_kwargs")
    return variables


def _mark_final_message(chat: list[dict[str, Any]], source: str) -> str:
    """Puts a mark behind the last message's text and returns that text."""
    content = chat[-1].get("content")
    if "content" in source and isinstance(content, str):
        chat[-1]["content"] = content + _CONTINUE_TAG
        return content
    if isinstance(content, list):
        for part in reversed(content):
            if isinstance(part, dict) and isinstance(part.get("text"), str):
                text: str = part["text"]
                part["text"] = text + _CONTINUE_TAG
                return text
    raise RequestError("The last message has no text to continue.", param="continue_final_message")


def _cut_final_message(text: str, tail: str) -> str:
    mark = _CONTINUE_TAG.strip()
    position = text.rfind(mark)
    if position < 0 or tail.strip() not in text:
        raise RequestError(
            "The model's chat template drops the last message, so it cannot be continued.",
            param="continue_final_message",
        )
    keeps_spaces = text[position : position + len(_CONTINUE_TAG)] == _CONTINUE_TAG
    return text[:position] if keeps_spaces else text[:position].rstrip()


def _render_error(error: Exception) -> RequestError:
    reason = str(error)[:500].rstrip(".")
    if isinstance(error, _RefusedError):
        message = f"The model's chat template refuses this chat: {reason}."
    elif isinstance(error, TemplateLimitError | OverflowError):
        message = f"The model's chat template was stopped: {reason}."
    elif isinstance(error, SecurityError):
        message = f"The model's chat template tried something it may not: {reason}."
    elif isinstance(error, RecursionError):
        message = "The chat, or the model's chat template, is nested too deeply."
    else:
        message = f"The model's chat template fails on this chat: {type(error).__name__}: {reason}."
    return RequestError(message, fix="Change the messages, or use another chat template.", param="messages")
