"""Checks of arguments, with the texts MindSpore Serving's users match on.

Every function raises `RuntimeError`, as that API does for all wrong arguments. Used by the whole `server` package.
"""

from __future__ import annotations


def check_str(name: str, value: object) -> str:
    """Returns `value`; raises `RuntimeError` unless it is a str with characters."""
    if not isinstance(value, str):
        raise RuntimeError(f"Parameter '{name}' should be str, but actually {type(value)}")
    if not value:
        raise RuntimeError(f"Parameter '{name}' should not be empty str")
    return value


def check_bool(name: str, value: object) -> bool:
    """Returns `value`; raises `RuntimeError` unless it is a bool."""
    if not isinstance(value, bool):
        raise RuntimeError(f"Parameter '{name}' should be bool, but actually {type(value)}")
    return value


def check_bytes(name: str, value: object) -> bytes:
    """Returns `value`; raises `RuntimeError` unless it is bytes."""
    if not isinstance(value, bytes):
        raise RuntimeError(f"Parameter '{name}' should be bytes, but actually {type(value)}")
    if not value:
        raise RuntimeError(f"Parameter '{name}' should not be empty bytes")
    return value


def check_int(name: str, value: object, minimum: int | None = None, maximum: int | None = None) -> int:
    """Returns `value`; raises `RuntimeError` unless it is an int within the limits."""
    return _check_int(f"Parameter '{name}'", value, minimum, maximum)


def check_ints(name: str, values: object, minimum: int | None = None, maximum: int | None = None) -> tuple[int, ...]:
    """Returns an int, or a tuple or list of different ints, as a tuple; raises `RuntimeError` otherwise."""
    if isinstance(values, int):
        values = (values,)
    if not isinstance(values, (tuple, list)):
        raise RuntimeError(f"Parameter '{name}' should be int or tuple/list of int, but actually {type(values)}")
    found: list[int] = []
    for item in values:
        if item in found:
            raise RuntimeError(f"The item value '{item}' in parameter '{name}' should not be repeated")
        found.append(_check_int(f"The item value '{item}' in parameter '{name}'", item, minimum, maximum))
    return tuple(found)


def check_strs(name: str, values: object) -> tuple[str, ...]:
    """Returns a str, or a tuple or list of different strs, as a tuple; raises `RuntimeError` otherwise."""
    if isinstance(values, str):
        values = (values,)
    if not isinstance(values, (tuple, list)):
        raise RuntimeError(f"Parameter '{name}' should be str or tuple/list of str, but actually {type(values)}")
    found: list[str] = []
    for item in values:
        if not isinstance(item, str):
            raise RuntimeError(f"The item of parameter '{name}' should be str, but actually {type(item)}")
        if not item:
            raise RuntimeError(f"The item of parameter '{name}' should not be empty str")
        if item in found:
            raise RuntimeError(f"The item value '{item}' in parameter '{name}' should not be repeated")
        found.append(item)
    return tuple(found)


def _check_int(prefix: str, value: object, minimum: int | None, maximum: int | None) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise RuntimeError(f"{prefix} should be int, but actually {type(value)}")
    too_small = minimum is not None and value < minimum
    too_large = maximum is not None and value > maximum
    if (too_small or too_large) and minimum is not None and maximum is not None:
        raise RuntimeError(f"{prefix} should be in range [{minimum},{maximum}]")
    if too_small:
        raise RuntimeError(f"{prefix} should be >= {minimum}")
    if too_large:
        raise RuntimeError(f"{prefix} should be <= {maximum}")
    return value
