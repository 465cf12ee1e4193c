"""A Jinja sandbox that also bounds work: a chat template comes with a model, and a model comes from anywhere.

Jinja's sandbox keeps a template from the interpreter's internals. This adds what it lacks: a budget of loop turns and
seconds, and limits on what values may grow to (template_limits.py). Called by chat_template.py; knows nothing of chats.
"""

from __future__ import annotations

import threading
import types
from collections.abc import Callable
from functools import wraps
from typing import Any

import jinja2.ext
import jinja2.parser
from jinja2 import nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from millpond.inference.text.template_limits import (
    TemplateLimitError,
    check_bits,
    check_filter,
    check_format,
    check_method,
    check_product,
    check_size,
    text_size,
)

MAX_TURNS = 1_000_000
MAX_SECONDS = 2.0


class GenerationTag(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's text for training; here it only shows its body."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: jinja2.parser.Parser) -> nodes.Node | list[nodes.Node]:
        """Parses to the body alone."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox with a budget: start one with `start_budget` before each render, in the thread that renders."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[GenerationTag, "jinja2.ext.loopcontrols"],
            finalize=_check_shown,
        )
        self._clock = clock
        self._budget = threading.local()
        del self.globals["lipsum"]  # makes text by the gigabyte
        for name, function in list(self.filters.items()):
            self.filters[name] = bounded_filter(name, function)

    def start_budget(self) -> None:
        """Gives this thread's next render a full budget."""
        self._budget.turns = MAX_TURNS
        self._budget.deadline_s = self._clock() + MAX_SECONDS

    def spend(self) -> None:
        """Pays for one turn of a loop or one call of a macro; compiled into every template."""
        self._budget.turns -= 1
        if self._budget.turns < 0:
            raise TemplateLimitError(f"the template runs more than {MAX_TURNS} loop turns")
        if self._clock() > self._budget.deadline_s:
            raise TemplateLimitError(f"the template runs longer than {MAX_SECONDS:.0f} s")

    def join_texts(self, *values: object) -> str:
        """The `~` operator; compiled in its place."""
        check_size(sum(map(text_size, values)))
        return "".join(map(str, values))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Checks the operands of `intercepted_binops`, then computes."""
        if operator == "*":
            check_product(left, right)
        elif operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
            check_size(len(left) + len(right))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            check_bits(left.bit_length() * abs(right))
        elif operator == "%" and isinstance(left, str):
            check_format(left, right if isinstance(right, tuple) else (right,), {})
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Checks the arguments of a plain value's method, then calls it."""
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps str.format
        if isinstance(method, types.BuiltinMethodType):
            listed = list(args)
            check_method(method.__self__, method.__name__, listed, kwargs)
            args = tuple(listed)
        return super().call(__context, __obj, *args, **kwargs)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        looping: list[nodes.For | nodes.Macro | nodes.CallBlock] = list(
            tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock))
        )
        for node in looping:
            spend = nodes.Call(nodes.EnvironmentAttribute("spend"), [], [], None, None, lineno=node.lineno)
            node.body.insert(0, nodes.ExprStmt(spend, lineno=node.lineno))
        _replace_joins(tree)
        tree.set_environment(self)
        return tree


def bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a filter so that its value and arguments are checked first."""
    position = 1 if hasattr(function, "jinja_pass_arg") else 0

    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        head, value, arguments = args[:position], args[position], list(args[position + 1 :])
        value = check_filter(name, value, arguments, kwargs)
        return function(*head, value, *arguments, **kwargs)

    return checked


def _check_shown(value: Any) -> Any:
    """What is about to be shown: `str` of a list may be far longer than the list."""
    if not isinstance(value, str):
        text_size(value)
    return value


def _replace_joins(node: nodes.Node) -> None:
    for child in node.iter_child_nodes():
        _replace_joins(child)
    for field, value in list(node.iter_fields()):
        if isinstance(value, list):
            setattr(node, field, [_join_call(item) for item in value])
        else:
            setattr(node, field, _join_call(value))


def _join_call(value: Any) -> Any:
    if not isinstance(value, nodes.Concat):
        return value
    attribute = nodes.EnvironmentAttribute("join_texts")
    return nodes.Call(attribute, value.nodes, [], None, None, lineno=value.lineno)
