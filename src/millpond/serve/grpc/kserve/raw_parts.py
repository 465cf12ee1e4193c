"""The raw tensors of a large infer message without copies of them.

protobuf copies every tensor twice before it can be looked at. The tensors of a request are one field of its message, so
they are cut out of the bytes as views, and protobuf parses what is left, which is small.
"""

from __future__ import annotations

_RAW_TAG = 0x3A  # field 7, raw_input_contents, of a length


def cut_raw(data: bytes | memoryview) -> tuple[bytes | memoryview, list[memoryview]]:
    """Returns a message without its raw tensors, and views of these.

    A message that cannot be cut comes back as it is: whoever parses it says what is wrong.
    """
    view = memoryview(data)
    kept: list[memoryview] = []
    raw: list[memoryview] = []
    at = start = 0
    end = len(data)
    try:
        while at < end:
            tag, after = _varint(data, at)
            kind = tag & 7
            if kind == 2:
                size, content = _varint(data, after)
                after = content + size
                if tag == _RAW_TAG:
                    kept.append(view[start:at])
                    raw.append(view[content:after])
                    start = after
            elif kind == 0:
                _, after = _varint(data, after)
            elif kind in (1, 5):
                after += 8 if kind == 1 else 4
            else:
                return data, []
            if after > end:
                return data, []
            at = after
    except (IndexError, OverflowError):
        return data, []
    kept.append(view[start:at])
    return b"".join(kept), raw


def _varint(data: bytes | memoryview, at: int) -> tuple[int, int]:
    value = data[at]
    at += 1
    if value < 0x80:
        return value, at
    value &= 0x7F
    for shift in range(7, 64, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise OverflowError
