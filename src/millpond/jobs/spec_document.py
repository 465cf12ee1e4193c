"""Reads YAML into values that know their path, so that every complaint can say where.

Stricter than YAML: a key twice, a recursive or exploding alias, an unknown tag, too deep or too much are errors.
`Reader` hands out one field at a time and raises `SpecError` with the field's path. Knows nothing about jobs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from typing import TypeVar

import yaml

from millpond.api.job import SpecError
from millpond.base.suggest import did_you_mean

MAX_BYTES = 1 << 20
_MAX_NODES = 50_000
_MAX_DEPTH = 48
_INTEGER = re.compile(r"[-+]?[0-9]{1,18}")
_FLOAT = re.compile(r"[-+]?(\d+\.\d*|\.\d+|\d+)([eE][-+]?\d{1,3})?")
_E = TypeVar("_E", bound=StrEnum)

Value = dict[str, "Value"] | list["Value"] | str | int | float | bool | None


def read_documents(text: str) -> list[Reader]:
    """Reads every document of a YAML text (JSON is YAML too).

    Raises:
        SpecError: It is not YAML, or more of it than a job can need.
    """
    if len(text.encode("utf-8", "replace")) > MAX_BYTES:
        raise SpecError(f"The file is larger than {MAX_BYTES} bytes.", fix="A job's specification is a short text.")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        nodes = list(yaml.compose_all(text, Loader=loader))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise SpecError(f"The file is not YAML: {_first_line(error)}", fix="Check indentation and quotes.") from None
    readers = []
    for node in nodes:
        lines: dict[str, int] = {}
        value = _Converter(lines).convert(node, "", 0)
        if value is not None:
            readers.append(Reader(value, "", lines))
    if not readers:
        raise SpecError("The file is empty.", fix="Write a job's specification into it.")
    return readers


class Reader:
    """A value of the document and the way to it."""

    def __init__(self, value: Value, path: str, lines: dict[str, int] | None = None) -> None:
        self.value = value
        self.path = path
        self._lines = {} if lines is None else lines

    def fail(self, problem: str, fix: str = "") -> SpecError:
        """Makes the error that says where: the caller raises it."""
        line = self._lines.get(self.path)
        where = (self.path or "the document") + (f" (line {line})" if line else "")
        return SpecError(f"{where}: {problem}", fix=fix, param=self.path or None)

    def child(self, key: str) -> Reader:
        """The field, whether it is there or not (then its value is None)."""
        value = self.value.get(key) if isinstance(self.value, dict) else None
        return Reader(value, _join(self.path, key), self._lines)

    def check_fields(self, known: Iterable[str]) -> Reader:
        """Checks that this is a mapping with no field but the known ones."""
        names = list(known)
        for key, entry in self.entries():
            if key not in names:
                near = did_you_mean(key, names)
                raise entry.fail("there is no such field.", near or f"Known are {', '.join(sorted(names))}.")
        return self

    def has(self, key: str) -> bool:
        """Whether the field is there and not null."""
        return isinstance(self.value, dict) and self.value.get(key) is not None

    def need(self, key: str) -> Reader:
        """The field, which must be there."""
        self.entries()
        if not self.has(key):
            raise self.child(key).fail("is missing.", f"Add '{key}'.")
        return self.child(key)

    def find(self, key: str) -> Reader | None:
        """The field, or None when it is absent or null."""
        return self.child(key) if self.has(key) else None

    def entries(self) -> Iterator[tuple[str, Reader]]:
        """Keys and fields of a mapping."""
        if not isinstance(self.value, dict):
            raise self.fail(f"must be a mapping, not {_kind(self.value)}.")
        return iter([(key, self.child(key)) for key in self.value])

    def items(self) -> list[Reader]:
        """Elements of a list."""
        if not isinstance(self.value, list):
            raise self.fail(f"must be a list, not {_kind(self.value)}.")
        return [Reader(value, f"{self.path}[{index}]", self._lines) for index, value in enumerate(self.value)]

    def text(self, *, allow_empty: bool = False) -> str:
        """A text."""
        if not isinstance(self.value, str):
            raise self.fail(f"must be a text, not {_kind(self.value)}.", "Put it in quotes." if self._is_scalar else "")
        if not self.value and not allow_empty:
            raise self.fail("must not be empty.")
        if "\0" in self.value:
            raise self.fail("must not hold a NUL character.")
        return self.value

    def scalar(self) -> str:
        """A text, or a number as it was written; for values of variables."""
        if isinstance(self.value, bool) or not self._is_scalar:
            raise self.fail(f"must be a text, not {_kind(self.value)}.", "Put it in quotes." if self._is_scalar else "")
        return self.text(allow_empty=True) if isinstance(self.value, str) else str(self.value)

    def integer(self, low: int, high: int = 1 << 31) -> int:
        """A whole number."""
        if not isinstance(self.value, int) or isinstance(self.value, bool):
            raise self.fail(f"must be a whole number, not {_kind(self.value)}.")
        if not low <= self.value <= high:
            raise self.fail(f"must be from {low} to {high}, not {self.value}.")
        return self.value

    def number(self, low: float, high: float = 1e12) -> float:
        """A number."""
        if not isinstance(self.value, int | float) or isinstance(self.value, bool):
            raise self.fail(f"must be a number, not {_kind(self.value)}.")
        if not low <= self.value <= high:
            raise self.fail(f"must be from {low:g} to {high:g}, not {self.value:g}.")
        return float(self.value)

    def flag(self) -> bool:
        """True or false."""
        if not isinstance(self.value, bool):
            raise self.fail(f"must be true or false, not {_kind(self.value)}.")
        return self.value

    def one_of(self, words: Sequence[str]) -> str:
        """One of the words; letter case and the difference of - and _ do not count."""
        text = self.text(allow_empty="" in words)
        folded = {_fold(word): word for word in words}
        if _fold(text) not in folded:
            shown = ", ".join(word or '""' for word in words)
            raise self.fail(f"'{text}' is not one of {shown}.", did_you_mean(text, words) if text else "")
        return folded[_fold(text)]

    def member(self, kind: type[_E]) -> _E:
        """A member of the enumeration, by value."""
        return kind(self.one_of([member.value for member in kind]))

    @property
    def _is_scalar(self) -> bool:
        return self.value is not None and not isinstance(self.value, dict | list)


class _Converter:
    """Turns composed YAML nodes into values, and notes the line of each."""

    def __init__(self, lines: dict[str, int]) -> None:
        self._lines = lines
        self._count = 0

    def convert(self, node: yaml.Node, path: str, depth: int) -> Value:
        self._count += 1
        line = node.start_mark.line + 1
        self._lines[path] = line
        if self._count > _MAX_NODES or depth > _MAX_DEPTH:
            raise SpecError(f"Line {line}: the document is too deep or too large.", fix="Remove aliases (*name).")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, depth)
        if isinstance(node, yaml.SequenceNode):
            _check_tag(node, "seq", path, line)
            return [self.convert(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        return _scalar(node, path, line)

    def _mapping(self, node: yaml.MappingNode, path: str, depth: int) -> Value:
        _check_tag(node, "map", path, node.start_mark.line + 1)
        values: dict[str, Value] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag.endswith(":merge"):
                raise SpecError(f"{path or 'the document'} (line {line}): a key must be a plain text.", param=path)
            inner = _join(path, key_node.value)
            if key_node.value in values:
                raise SpecError(f"{inner} (line {line}): the field is there twice.", fix="Keep one.", param=inner)
            values[key_node.value] = self.convert(value_node, inner, depth + 1)
            self._lines[inner] = line
        return values


def _scalar(node: yaml.ScalarNode, path: str, line: int) -> Value:
    text, tag = node.value, node.tag.rpartition(":")[2]
    where = f"{path or 'the document'} (line {line})"
    match tag:
        case "str" | "timestamp":
            return str(text)
        case "null":
            return None
        case "bool":
            return text.casefold() in ("true", "yes", "on")
        case "int" if _INTEGER.fullmatch(text.replace("_", "")) and not re.match(r"[-+]?0[0-9]", text):
            return int(text.replace("_", ""))
        case "float" if _FLOAT.fullmatch(text) and math.isfinite(float(text)):
            return float(text)
        case "int" | "float":
            raise SpecError(f"{where}: {text[:40]!r} is a number in a form that is easily misread.",
                            fix="Write it in decimal, or in quotes if it is a text.", param=path)  # fmt: skip
        case _:
            raise SpecError(f"{where}: the tag {node.tag!r} means nothing here.", fix="Remove it.", param=path)


def _check_tag(node: yaml.Node, kind: str, path: str, line: int) -> None:
    if node.tag != f"tag:yaml.org,2002:{kind}":
        where = f"{path or 'the document'} (line {line})"
        raise SpecError(f"{where}: the tag {node.tag!r} means nothing here.", fix="Remove it.", param=path)


def _join(path: str, key: str) -> str:
    shown = key if re.fullmatch(r"[A-Za-z_][\w-]{0,80}", key) else f'"{key[:80]}"'
    return f"{path}.{shown}" if path else shown


def _kind(value: Value) -> str:
    match value:
        case None:
            return "empty"
        case bool():
            return f"{str(value).lower()} (true or false)"
        case str():
            return f"the text {value[:40]!r}"
        case int() | float():
            return f"the number {value}"
        case list():
            return "a list"
        case _:
            return "a mapping"


def _fold(word: str) -> str:
    return word.casefold().replace("-", "").replace("_", "")


def _first_line(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"line {mark.line + 1}: {problem}." if mark is not None else f"{problem}."
