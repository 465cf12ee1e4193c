"""How often a regular expression or a Lark terminal repeats a part: (a{10}){20} is 200.

Owns a scanner that knows just enough of the two syntaxes to find nested counts, which cost a lexer their product. It
judges nothing: malformed text gets any answer, and the grammar library refuses it. Called by `grammar_bounds`.
"""

from __future__ import annotations

import re

_REPEAT = re.compile(r"\{\s*(\d+)?\s*,?\s*(\d+)?\s*\}", re.ASCII)
_MOST_DIGITS = 9  # of a count; enough to be over any limit
_DEEPEST_TERMINAL = 200

_LARK_DEFINITION = re.compile(r"^[?!]?(_?[A-Z][A-Z0-9_]*)(?:\.-?\d+)?(?:\[[^\]]*\])?\s*:", re.MULTILINE)
_LARK_START = re.compile(r"^(?:[?!]?\w+[^\n:\"/]*:|%)", re.MULTILINE)
_LARK_TOKEN = re.compile(
    r'(?P<string>"(?:[^"\\\n]|\\.)*"i?)|(?P<regex>/(?:[^/\\\n]|\\.)+/[a-z]*)|(?P<comment>(?://|\#)[^\n]*)'
    r"|(?P<name>[A-Za-z_]\w*)|~\s*(?:\d+\s*\.\.\s*)?(?P<times>\d+)|(?P<space>\s+)|(?P<open>\[)|(?P<close>\])"
)


def count_repeats(pattern: str) -> int:
    """The largest product of nested repeat counts in a regular expression."""
    stack = [1]  # per open group, the largest product inside it
    last = 1  # of the atom a quantifier would apply to
    at, size = 0, len(pattern)
    while at < size:
        char = pattern[at]
        if char == "\\":
            at += _escape_length(pattern, at)
            last = 1
        elif char == "[":
            at = _skip_class(pattern, at)
            last = 1
        elif char == "(":
            stack.append(1)
            at += 1
        elif char == ")":
            last = stack.pop() if len(stack) > 1 else 1
            at += 1
        elif char == "{" and (counts := _REPEAT.match(pattern, at)):
            last *= max([1, *(int(number[:_MOST_DIGITS]) for number in counts.groups() if number)])
            at = counts.end()
        else:
            last = last if char in "*+?" else 1
            at += 1
        stack[-1] = max(stack[-1], last)
    return max(stack)


def count_lark_repeats(source: str) -> int:
    """The largest product of nested repeat counts in the terminals of a Lark grammar, through their references."""
    starts = sorted({match.start() for match in _LARK_START.finditer(source)} | {len(source)})
    bodies: dict[str, str] = {}
    for match in _LARK_DEFINITION.finditer(source):
        end = next(start for start in starts if start > match.start())
        bodies[match.group(1)] = source[match.end() : end]
    known: dict[str, int] = {}
    inline = (count_repeats(match.group()) for match in _LARK_TOKEN.finditer(source) if match.lastgroup == "regex")
    return max([1, *inline, *(_count_terminal(name, bodies, known, 0) for name in bodies)])


def _count_terminal(name: str, bodies: dict[str, str], known: dict[str, int], depth: int) -> int:
    if name in known or name not in bodies:
        return known.get(name, 1)
    known[name] = 1  # a terminal that refers to itself is refused by the grammar library
    if depth > _DEEPEST_TERMINAL:
        return 1

    def simplify(token: re.Match[str]) -> str:
        """A token as a regular expression with the same counts."""
        kind, text = token.lastgroup, token.group()
        if kind == "regex":
            return f"x{{{count_repeats(text)}}}"
        if kind == "name":
            return f"x{{{_count_terminal(text, bodies, known, depth + 1)}}}"
        if kind == "times":
            return f"{{{token.group('times')}}}"
        return {"string": "x", "open": "(", "close": ")"}.get(kind or "", "")

    known[name] = count_repeats(_LARK_TOKEN.sub(simplify, bodies[name]))
    return known[name]


def _escape_length(pattern: str, at: int) -> int:
    if pattern[at + 1 : at + 3] in ("x{", "u{", "U{", "p{", "P{"):
        end = pattern.find("}", at)
        return (end if end >= 0 else len(pattern)) + 1 - at
    return 2


def _skip_class(pattern: str, at: int) -> int:
    """The position after a character class, which may hold further classes."""
    depth = 0
    while at < len(pattern):
        char = pattern[at]
        if char == "\\":
            at += 1
        elif char == "[":
            depth += 1
            at += 1 if pattern[at + 1 : at + 2] == "^" else 0
            at += 1 if pattern[at + 1 : at + 2] == "]" else 0  # a first ] is a literal
        elif char == "]":
            depth -= 1
            if depth == 0:
                return at + 1
        at += 1
    return at
