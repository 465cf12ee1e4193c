"""Reads one tool call, a JSON object with a name and arguments, while it is still being written.

Gives the raw text of the arguments out as it comes, so that a stream can pass long arguments on at once. Checks
brackets, strings and the object's own keys, not the grammar of the arguments: bad arguments are shown as they were
written. The forms in this folder differ only in what stands around such objects.
"""

from __future__ import annotations

import json
import re
from enum import Enum, auto

_ARGUMENT_KEYS = ("arguments", "parameters")
_SPACE = " \t\r\n"
_PLAIN = re.compile(r"[0-9A-Za-z+\-.,:\s]")  # what may stand outside of strings and brackets


class _At(Enum):
    START = auto()
    KEY = auto()
    IN_KEY = auto()
    COLON = auto()
    VALUE = auto()
    IN_VALUE = auto()
    AFTER_VALUE = auto()
    DONE = auto()
    BROKEN = auto()


class CallScanner:
    """One call object.

    Attributes:
        raw: Everything consumed.
        name: The function's name, once its string is complete.
    """

    def __init__(self) -> None:
        self.raw = ""
        self.name: str | None = None
        self._at = _At.START
        self._key = ""
        self._value = ""
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._ready = ""  # arguments read and not yet taken
        self._has_arguments = False

    @property
    def is_done(self) -> bool:
        """True when the object is closed."""
        return self._at is _At.DONE

    @property
    def is_broken(self) -> bool:
        """True when this is no call and never will be."""
        return self._at is _At.BROKEN

    @property
    def is_call(self) -> bool:
        """True once it is sure to be a call: it has a name, and arguments or an end."""
        return self.name is not None and (self._has_arguments or self.is_done)

    def feed(self, text: str) -> int:
        """Reads on; returns how many characters belong to the object (all of them, until it is done or broken)."""
        for count, character in enumerate(text):
            if self._at in (_At.DONE, _At.BROKEN):
                return count
            if not self._step(character):
                self._at = _At.BROKEN
                return count
            self.raw += character
        return len(text)

    def take_arguments(self) -> str:
        """Returns the arguments' text since the last time."""
        if self.is_done and not self._has_arguments:
            self._has_arguments = True
            return "{}"
        ready, self._ready = self._ready, ""
        return ready

    def _step(self, character: str) -> bool:
        match self._at:
            case _At.START:
                return self._expect(character, "{", _At.KEY)
            case _At.KEY:
                return self._expect(character, '"', _At.IN_KEY) or self._expect(character, "}", _At.DONE)
            case _At.IN_KEY:
                return self._read_key(character)
            case _At.COLON:
                return self._expect(character, ":", _At.VALUE)
            case _At.VALUE:
                return character in _SPACE or self._begin_value(character)
            case _At.IN_VALUE:
                return self._read_value(character)
            case _:
                return self._expect(character, ",", _At.KEY) or self._expect(character, "}", _At.DONE)

    def _expect(self, character: str, wanted: str, then: _At) -> bool:
        if character == wanted:
            self._at = then
            return True
        return character in _SPACE

    def _read_key(self, character: str) -> bool:
        if character == '"':
            self._at = _At.COLON
        elif character == "\\":
            return False
        else:
            self._key += character
        return True

    def _begin_value(self, character: str) -> bool:
        if character in ",}]:":
            return False
        self._at = _At.IN_VALUE
        self._value = ""
        self._depth = 0
        return self._read_value(character)

    def _read_value(self, character: str) -> bool:
        is_end = False
        if self._in_string:
            is_end = self._read_string(character)
        elif character == '"':
            self._in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            if self._depth == 0:  # the object's own brace ends a number, true, false or null
                return self._end_value() and self._expect(character, "}", _At.DONE)
            self._depth -= 1
            is_end = self._depth == 0
        elif character == "," and self._depth == 0:
            return self._end_value() and self._expect(character, ",", _At.KEY)
        elif not _PLAIN.match(character):
            return False
        self._keep(character)
        return self._end_value() if is_end else True

    def _read_string(self, character: str) -> bool:
        """Returns True when this character ends a string that is the whole value."""
        if self._escaped:
            self._escaped = False
        elif character == "\\":
            self._escaped = True
        elif character == '"':
            self._in_string = False
            return self._depth == 0
        return False

    def _keep(self, character: str) -> None:
        self._value += character
        # Arguments given as a JSON string are decoded at their end, everything else is passed on as it is.
        if self._key in _ARGUMENT_KEYS and not self._value.startswith('"'):
            self._has_arguments = True
            self._ready += character

    def _end_value(self) -> bool:
        self._at = _At.AFTER_VALUE
        key, self._key = self._key, ""
        if key == "name" or (key in _ARGUMENT_KEYS and self._value.startswith('"')):
            try:
                value = json.loads(self._value)
            except ValueError:
                return False
            if not isinstance(value, str):
                return False
            if key == "name":
                self.name = value
            else:
                self._has_arguments = True
                self._ready += value
        return True
