"""Broken input from good: JSON values, protobuf messages and bytes with parts changed, left out or blown up."""

from __future__ import annotations

import copy
import random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

ODD: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 2**31, 2**63, 2**64, -(2**70), 10**400, 1e308, -0.0, 0.5, -1.5),
    *("", "x", "\x00", "é\u0000", "\ud800", "\U0001f3e0" * 40, "y" * 20_000, "NaN", "../../etc/passwd", "{"),
    *([], [[]], [None], [[1], 2], [[[[[[1]]]]]], {}, {"a": {}}, {"b64": "A"}, {"b64": "AAAA", "type": "int32"}),
    *([-1], [0], [2**62, 2**62], [1, -4], [2**31], [10**9, 10**9], ["x"] * 70, [1] * 3000),
)
NAMES: tuple[str, ...] = (
    *("", ".", "..", "../secret", "../../etc", "..%2fsecret", "%2e%2e%2fsecret", "calc/../../secret", "/etc/passwd"),
    *("calc/1", "calc\x00", "\x00", "calc%00", "a" * 5000, "é", "\u202e", "~", "$HOME", "*", "calc ", "CALC", "calc\n"),
    *("con", "models/calc", "file:///etc/passwd", "\\\\..\\secret", "%", "%zz", ";ls", "spare"),
)


def mutate_json(rng: random.Random, value: Any, chance: float = 0.15) -> Any:
    """A copy with parts replaced, left out or doubled."""
    if rng.random() < chance:
        return copy.deepcopy(rng.choice(ODD))
    if isinstance(value, dict):
        changed = {key: mutate_json(rng, item, chance) for key, item in value.items()}
        if changed and rng.random() < chance:
            del changed[rng.choice(list(changed))]
        if rng.random() < chance / 2:
            changed[rng.choice(["", "b64", "x", "../x", "parameters", "\x00"])] = copy.deepcopy(rng.choice(ODD))
        return changed
    if isinstance(value, list):
        return [mutate_json(rng, item, chance) for item in value for _ in range(rng.choice([1] * 8 + [0, 2]))]
    return value


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """A copy with some bytes changed, cut off, or put in."""
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 6)):
        if changed:
            changed[rng.randrange(len(changed))] = rng.randrange(256)
    if rng.random() < 0.2:
        del changed[rng.randrange(len(changed) + 1) :]
    if rng.random() < 0.2:
        at = rng.randrange(len(changed) + 1)
        long = b"\x0a\xff\xff\xff\xff\x0f"
        changed[at:at] = rng.choice([b"\xff" * 10, b"\x80" * 12, b"\x0b", b"\x0c" * 40, long, b"\x0a\x00"])
    return bytes(changed)


def mutate_message(rng: random.Random, message: Message) -> bytes:
    """The bytes of a copy with one to three fields changed, sometimes with its bytes broken too."""
    changed = copy.deepcopy(message)
    for _ in range(rng.choice((1, 1, 2, 3))):
        _change_field(rng, changed)
    data = changed.SerializeToString()
    return mutate_bytes(rng, data) if rng.random() < 0.3 else data


def _change_field(rng: random.Random, message: Message) -> None:
    """Goes down to some field and gives it an odd value."""
    fields = message.DESCRIPTOR.fields
    if not fields:
        return
    present = [field for field, _ in message.ListFields()]
    field = rng.choice(present if present and rng.random() < 0.7 else list(fields))
    value = getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        _change_map(rng, value, field)
    elif field.is_repeated:
        _change_list(rng, value, field)
    elif field.message_type is not None:
        value.SetInParent()
        _change_field(rng, value)
    elif rng.random() < 0.2:
        message.ClearField(field.name)
    else:
        setattr(message, field.name, _odd_of(rng, field))


def _change_map(rng: random.Random, value: Any, field: FieldDescriptor) -> None:
    key_type, item_type = field.message_type.fields_by_name["key"], field.message_type.fields_by_name["value"]
    if value and rng.random() < 0.3:
        del value[rng.choice(list(value))]
        return
    key = rng.choice(list(value)) if value and rng.random() < 0.6 else _odd_of(rng, key_type)
    if item_type.message_type is not None:
        value[key].SetInParent()
        _change_field(rng, value[key])
    else:
        value[key] = _odd_of(rng, item_type)


def _change_list(rng: random.Random, value: Any, field: FieldDescriptor) -> None:
    action = rng.random()
    if len(value) and action < 0.2:
        del value[rng.randrange(len(value))]
    elif field.message_type is not None:
        if not len(value) or action < 0.35:
            value.add()
        _change_field(rng, value[rng.randrange(len(value))])
    elif len(value) and action < 0.7:
        value[rng.randrange(len(value))] = _odd_of(rng, field)
    else:
        value.extend([_odd_of(rng, field)] * rng.choice((1, 1, 2, 500)))


def _odd_of(rng: random.Random, field: FieldDescriptor) -> Any:
    kind = field.cpp_type
    signed = {FieldDescriptor.CPPTYPE_INT32: 31, FieldDescriptor.CPPTYPE_INT64: 63}
    unsigned = {FieldDescriptor.CPPTYPE_UINT32: 32, FieldDescriptor.CPPTYPE_UINT64: 64}
    if kind in signed:
        most = 2 ** signed[kind] - 1
        return rng.choice((0, 1, -1, -16, 7, 2**30, most, -most - 1))
    if kind in unsigned:
        return rng.choice((0, 1, 7, 2**30, 2 ** unsigned[kind] - 1))
    if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return rng.choice((0.0, -1.0, 1e30, float("inf"), float("-inf"), float("nan"), 0.5))
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return rng.random() < 0.5
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return rng.choice((0, 1, 9, 14, 99))
    if field.type == FieldDescriptor.TYPE_BYTES:
        return rng.choice((b"", b"\x00", b"\xff" * 9, b"\xff\xff\xff\x7f", b"a" * 20_000, bytes(16), bytes(63)))
    return rng.choice((*NAMES, "INT32", "FP64", "BYTES", "1", "-1", "99999999999999999999"))
