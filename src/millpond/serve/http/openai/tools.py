"""Tool calls: who may be called, how the answer is held to it, and how it is read.

`required` and a named function get a grammar, so their calls are always valid; `auto` lets the model write what it
wants and reads it in the model's own form. Knows the chat template only as text.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from millpond.api.request import GrammarSpec
from millpond.serve.http.errors import invalid
from millpond.serve.http.openai.chat_fields import ChatBody, NamedToolChoice, Tool
from millpond.serve.http.openai.params import schema_grammar
from millpond.serve.http.openai.tool_forms import TOOL_FORMS, CallPiece, Piece, ToolReader, form_of

_INSTRUCTION = """You can call functions. They are described here, one JSON object a line:
<tools>
{tools}
</tools>
To call one, write a JSON object with its name and arguments between tags, and nothing else:
<tool_call>
{{"name": "function-name", "arguments": {{...}}}}
</tool_call>"""


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What a request's tools mean for its prompt and its answer.

    Attributes:
        shown: Tools the prompt describes.
        grammar: Holds the answer to calls; None leaves it free.
        named: The one function whose arguments are the whole answer.
        form: How calls in a free answer are written.
    """

    shown: tuple[Tool, ...] = ()
    grammar: GrammarSpec | None = None
    named: str | None = None
    form: str | None = None

    def reader(self) -> ToolReader | None:
        """Returns what splits an answer into text and calls; None when there are no calls in it."""
        if self.named is not None:
            return ArgumentsReader(self.named)
        if self.form is None:
            return None
        return TOOL_FORMS[self.form](frozenset(tool.function.name for tool in self.shown))


class ArgumentsReader:
    """Reads an answer that is the arguments of one known function."""

    def __init__(self, name: str) -> None:
        self._name: str | None = name

    def push(self, text: str) -> list[Piece]:
        """Takes the next text; returns what is certain by now."""
        if self._name is not None:
            text = text.lstrip()
        if not text:
            return []
        name, self._name = self._name, None
        return [CallPiece(0, name, text)]

    def flush(self) -> list[Piece]:
        """Returns the rest at the end of the answer: nothing."""
        return []


def tool_use(body: ChatBody, template: str, has_constraint: bool) -> ToolUse:
    """Decides what the tools of a request mean.

    Args:
        body: The request.
        template: The model's chat template.
        has_constraint: The request demands a form of the text, which rules calls out unless they are required.

    Raises:
        ApiError: The choice names a function that is not offered, or there are none.
    """
    tools = tuple(body.tools or ())
    choice = body.tool_choice
    if not tools:
        if choice not in (None, "none", "auto"):
            raise invalid("tool_choice asks for a call and tools offers nothing to call.", param="tool_choice")
        return ToolUse()
    _check_names(tools)
    if choice == "none":
        return ToolUse()
    if isinstance(choice, NamedToolChoice):
        return _use_named(tools, choice.function.name)
    if choice == "required":
        is_single = body.parallel_tool_calls is False
        return ToolUse(tools, schema_grammar(calls_schema(tools, is_single)), form="array")
    return ToolUse(tools, form=None if has_constraint else form_of(template))


def _use_named(tools: tuple[Tool, ...], name: str) -> ToolUse:
    tool = next((tool for tool in tools if tool.function.name == name), None)
    if tool is None:
        raise invalid(f"tool_choice names {name!r}, which is not among the tools.", param="tool_choice")
    return ToolUse(tools, schema_grammar(_parameters(tool)), named=name)


def _check_names(tools: tuple[Tool, ...]) -> None:
    names = [tool.function.name for tool in tools]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise invalid(f"The function {twice!r} is offered twice.", param="tools")


def calls_schema(tools: tuple[Tool, ...], is_single: bool) -> dict[str, Any]:
    """Returns the JSON schema of an array of calls to these tools."""
    call_schemas = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool.function.name},
                "arguments": {"$ref": f"#/$defs/{tool.function.name}"},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in tools
    ]
    schema = {
        "type": "array",
        "minItems": 1,
        "items": call_schemas[0] if len(call_schemas) == 1 else {"anyOf": call_schemas},
        "$defs": {tool.function.name: _moved(_parameters(tool), f"#/$defs/{tool.function.name}") for tool in tools},
    }
    return schema | {"maxItems": 1} if is_single else schema


def _parameters(tool: Tool) -> dict[str, Any]:
    if not tool.function.parameters:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    # $id would change what the references mean, $schema may name a draft that nobody here knows.
    parameters = {key: value for key, value in tool.function.parameters.items() if key not in ("$id", "$schema")}
    return parameters if "type" in parameters or "$ref" in parameters else {"type": "object", **parameters}


def _moved(schema: Any, place: str) -> Any:
    """Returns a schema whose references to its own root lead to `place` in the schema around it."""
    if isinstance(schema, list):
        return [_moved(item, place) for item in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: _moved(value, place) for key, value in schema.items()}
    target = moved.get("$ref")
    if isinstance(target, str) and target.startswith("#"):
        moved["$ref"] = place + target[1:]
    return moved


def tool_instruction(tools: tuple[Tool, ...]) -> str:
    """Returns what a model whose template knows no tools is told about them."""
    lines = [json.dumps(tool_dict(tool)["function"], ensure_ascii=False) for tool in tools]
    return _INSTRUCTION.format(tools="\n".join(lines))


def tool_dict(tool: Tool) -> dict[str, Any]:
    """Returns a tool as chat templates expect it, without what was not given."""
    function: dict[str, Any] = {"name": tool.function.name}
    if tool.function.description is not None:
        function["description"] = tool.function.description
    function["parameters"] = tool.function.parameters or {"type": "object", "properties": {}}
    return {"type": "function", "function": function}
