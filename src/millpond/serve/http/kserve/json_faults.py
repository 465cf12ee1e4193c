"""What is wrong with a text that should be JSON, and where, in the words of Triton's parser and at its positions.

A scanner that is only asked after a fast parser has refused a body, and only about small ones. Pure; called by
`json_body`.
"""

from __future__ import annotations

import re

_SPACE = re.compile(r"[ \t\n\r]*")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_HEX = re.compile(r"[0-9a-fA-F]{4}")
_DIGITS = re.compile(r"[0-9]+")
_LITERALS = {"t": ("true",), "f": ("false",), "n": ("null",), "N": ("NaN",), "I": ("Infinity", "Inf")}
_MARK = "\xef\xbb\xbf"  # the byte order mark, which Triton passes over
_ESCAPES = '"\\/bfnrt'


class _Fault(Exception):
    def __init__(self, words: str, at: int) -> None:
        super().__init__(words)
        self.words = words
        self.at = at


def find_fault(text: str) -> tuple[str, int] | None:
    """Returns the words and the position of the first fault; None when there is none.

    Args:
        text: One character a byte.
    """
    try:
        _document(text)
    except _Fault as fault:
        return fault.words, fault.at
    return None


def _document(text: str) -> None:
    at = _skip(text, len(_MARK) if text.startswith(_MARK) else 0)
    if at == len(text):
        raise _Fault("The document is empty.", at)
    at = _skip(text, _value(text, at))
    if at < len(text):
        raise _Fault("The document root must not be followed by other values.", at)


def _value(text: str, at: int) -> int:
    """Reads a value with all that is in it, without recursion; returns where it ends."""
    closers: list[str] = []
    while True:
        first = text[at : at + 1]
        if first in ("{", "["):
            closers.append("}" if first == "{" else "]")
            at = _skip(text, at + 1)
            if text[at : at + 1] != closers[-1]:
                at = _name(text, at) if first == "{" else at
                continue
        elif first == '"':
            at = _string(text, at)
            at -= 1  # its last character closes it, as the bracket of an empty array does
        else:
            at = _literal(text, at) if first in _LITERALS else _number(text, at)
            at -= 1
        at += 1
        if first in ("{", "["):
            closers.pop()
        at, is_over = _after(text, at, closers)
        if is_over:
            return at


def _after(text: str, at: int, closers: list[str]) -> tuple[int, bool]:
    """What follows a value: the next one's place, or the end of the outermost."""
    while closers:
        at = _skip(text, at)
        following = text[at : at + 1]
        if following == ",":
            at = _skip(text, at + 1)
            return (_name(text, at) if closers[-1] == "}" else at), False
        if following != closers[-1]:
            what = "'}' after an object member" if closers[-1] == "}" else "']' after an array element"
            raise _Fault(f"Missing a comma or {what}.", at)
        closers.pop()
        at += 1
    return at, True


def _name(text: str, at: int) -> int:
    if text[at : at + 1] != '"':
        raise _Fault("Missing a name for object member.", at)
    at = _skip(text, _string(text, at))
    if text[at : at + 1] != ":":
        raise _Fault("Missing a colon after a name of object member.", at)
    return _skip(text, at + 1)


def _string(text: str, at: int) -> int:
    at += 1
    while True:
        found = _PLAIN.match(text, at)
        assert found is not None
        at = found.end()
        character = text[at : at + 1]
        if character == '"':
            return at + 1
        if character == "\\":
            at = _escape(text, at)
        elif character in ("", "\0"):
            raise _Fault("Missing a closing quotation mark in string.", at)
        else:
            raise _Fault("Invalid escape character in string.", at)


def _escape(text: str, start: int) -> int:
    kind = text[start + 1 : start + 2]
    if kind == "u":
        if _HEX.match(text, start + 2) is None:
            raise _Fault("Incorrect hex digit after \\u escape in string.", start)
        code = int(text[start + 2 : start + 6], 16)
        if not 0xD800 <= code < 0xE000:
            return start + 6
        is_pair = code < 0xDC00 and text[start + 6 : start + 8] == "\\u" and _HEX.match(text, start + 8) is not None
        if not is_pair or not 0xDC00 <= int(text[start + 8 : start + 12], 16) < 0xE000:
            raise _Fault("The surrogate pair in string is invalid.", start)
        return start + 12
    if not kind or kind not in _ESCAPES:
        raise _Fault("Invalid escape character in string.", start)
    return start + 2


def _literal(text: str, at: int) -> int:
    words = _LITERALS[text[at]]
    for word in words:
        if text.startswith(word, at):
            return at + len(word)
    num_right = next(i for i in range(1, len(words[0]) + 1) if text[at + i : at + i + 1] != words[0][i : i + 1])
    raise _Fault("Invalid value.", at + num_right)


def _number(text: str, start: int) -> int:
    at = start + (text[start : start + 1] == "-")
    if text[at : at + 1] == "0":
        at += 1
    elif text[at : at + 1] in _LITERALS and text[at] in "NI":
        return _literal(text, at)
    else:
        at = _digits(text, at, "Invalid value.")
    if text[at : at + 1] == ".":
        at = _digits(text, at + 1, "Miss fraction part in number.")
    if text[at : at + 1] in ("e", "E"):
        at += 1
        at += text[at : at + 1] in ("+", "-")
        at = _digits(text, at, "Miss exponent in number.")
    if abs(float(text[start:at])) == float("inf"):
        raise _Fault("Number too big to be stored in double.", start)
    return at


def _digits(text: str, at: int, words: str) -> int:
    found = _DIGITS.match(text, at)
    if found is None:
        raise _Fault(words, at)
    return found.end()


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None
    return found.end()
