"""How large values may get in a chat template, checked before an operation makes them.

Plain functions on plain values: each raises `TemplateLimitError` or returns nothing. Called by template_guard.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import jinja2

MAX_SIZE = 8 << 20  # characters of a string, items of a list
MAX_WIDTH = 100_000  # any number that pads, indents or formats
MAX_INDENT = 64  # of tojson
MAX_BITS = 4096  # of a whole number
_PERCENT_WIDTH = re.compile(r"%[^a-zA-Z%]*(\d{6}|\*)")
_BRACE_WIDTH = re.compile(r"\{[^{}]*[:!][^{}]*(\d{6}|\{)")


class TemplateLimitError(jinja2.TemplateError):
    """A template did more work, or held more, than a chat template has use for."""


def check_size(size: int) -> None:
    """Refuses a string or list of that many characters or items."""
    if size > MAX_SIZE:
        raise TemplateLimitError(f"the template makes a value of more than {MAX_SIZE} characters or items")


def text_size(value: object) -> int:
    """About how long `str(value)` gets; refuses what is too long.

    A list that holds another twice is as long as if it held two: each is measured once and counted each time.
    """
    if isinstance(value, str | bytes):
        return len(value)
    sizes: dict[int, int] = {}
    waiting: list[object] = [value]
    while waiting:
        item = waiting[-1]
        if id(item) in sizes:
            waiting.pop()
            continue
        children = _children(item)
        check_size(8 * len(children))
        unknown = {id(child): child for child in children if _is_container(child) and id(child) not in sizes}
        if unknown:
            waiting.extend(unknown.values())
            continue
        size = 8 + sum(sizes[id(child)] if _is_container(child) else _scalar_size(child) for child in children)
        check_size(size)
        sizes[id(item)] = size
        waiting.pop()
    return sizes[id(value)]


def _is_container(value: object) -> bool:
    return isinstance(value, list | tuple | dict | set | frozenset)


def _scalar_size(value: object) -> int:
    return 4 + len(value) if isinstance(value, str | bytes) else 8


def _children(value: object) -> list[object]:
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    return list(value) if isinstance(value, list | tuple | set | frozenset) else []


def check_product(left: object, right: object) -> None:
    """`left * right`: repetition, or whole numbers that grow."""
    for repeated, times in ((left, right), (right, left)):
        if isinstance(repeated, str | bytes | list | tuple) and isinstance(times, int):
            check_size(len(repeated) * max(0, times))
    if isinstance(left, int) and isinstance(right, int):
        check_bits(left.bit_length() + right.bit_length())


def check_bits(bits: int) -> None:
    """Refuses a whole number of that many bits."""
    if bits > MAX_BITS:
        raise TemplateLimitError(f"the template makes a number of more than {MAX_BITS} bits")


def check_format(pattern: str, values: Sequence[object], named: Mapping[str, object]) -> None:
    """`pattern % values` and `pattern.format(...)`: widths, and how often the values may appear."""
    if (_PERCENT_WIDTH.search(pattern) or _BRACE_WIDTH.search(pattern)) is not None:
        check_widths(values, named.values())
        if re.search(r"\d{6}", pattern):
            raise TemplateLimitError(f"the template formats to a width above {MAX_WIDTH}")
    longest = max(map(text_size, [*values, *named.values()]), default=0)
    check_size(len(pattern) + longest * (pattern.count("{") + pattern.count("%")))


def check_widths(*groups: Iterable[object]) -> None:
    """Refuses numbers that pad or indent too far."""
    for group in groups:
        for value in group:
            if isinstance(value, int) and abs(value) > MAX_WIDTH:
                raise TemplateLimitError(f"the template gives {value!r:.40} where at most {MAX_WIDTH} makes sense")


def check_replace(text: Sequence[Any], arguments: Sequence[Any]) -> None:
    """`text.replace(old, new)`."""
    if len(arguments) < 2 or not isinstance(text, str | bytes):
        return
    old, new = arguments[0], arguments[1]
    if type(old) is type(new) and isinstance(new, str | bytes):
        found = text.count(old) if old and isinstance(old, type(text)) else len(text) + 1  # type: ignore[arg-type]
        check_size(len(text) + found * len(new))


def joined_items(glue: Sequence[Any], items: Iterable[Any]) -> list[Any]:
    """Returns the items of a join as a list whose joined length is in bounds."""
    listed = list(islice(items, MAX_SIZE + 1))
    check_size(len(glue) * len(listed) + sum(map(text_size, listed)))
    return listed


def check_method(owner: object, name: str, arguments: list[Any], named: Mapping[str, Any]) -> None:
    """A call of a method of a plain value, such as `text.ljust(width)`; may make a generator argument a list."""
    if not isinstance(owner, str | bytes):
        check_widths(arguments, named.values())
        return
    if name in ("format", "format_map"):
        from_map = name == "format_map" and arguments and isinstance(arguments[0], Mapping)
        check_format(str(owner), list(arguments[0].values()) if from_map else arguments, named)
        return
    check_widths(arguments, named.values())
    if name == "replace":
        check_replace(owner, arguments)
    elif name == "join" and arguments:
        arguments[0] = joined_items(owner, arguments[0])
    elif name == "expandtabs":
        width = next((value for value in [*arguments, *named.values()] if isinstance(value, int)), 8)
        check_size(len(owner) + owner.count("\t" if isinstance(owner, str) else b"\t") * width)  # type: ignore[arg-type]
    elif name == "translate" and arguments and isinstance(arguments[0], Mapping):
        longest = max((len(value) for value in arguments[0].values() if isinstance(value, str)), default=1)
        check_size(len(owner) * max(1, longest))


def check_filter(name: str, value: Any, arguments: list[Any], named: Mapping[str, Any]) -> Any:
    """A filter's value and arguments; returns the value, or a list in place of a generator."""
    if name == "format":
        check_format(str(value), arguments, named)
        return value
    check_widths(arguments, named.values())
    given = [*arguments, *named.values()]
    if name == "replace":
        check_replace(str(value), [str(item) for item in given])
    elif name == "join":
        glue = next((item for item in given if isinstance(item, str)), "")
        return joined_items(glue, value)
    elif name == "indent":
        inserted = max((item if isinstance(item, int) else len(str(item)) for item in given), default=4)
        check_size(len(str(value)) + (str(value).count("\n") + 1) * inserted)
    elif name == "wordwrap":
        glue_size = max((len(item) for item in given if isinstance(item, str)), default=1)
        check_size(len(str(value)) * (1 + glue_size))
    elif name == "sum" and any(isinstance(item, list | tuple) for item in given):
        raise TemplateLimitError("the template adds up lists")
    elif name in ("string", "pprint", "tojson", "escape", "e", "forceescape", "urlencode", "xmlattr", "title"):
        text_size(value)
    return value
