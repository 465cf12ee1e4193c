"""Stage functions: from what users write to what the stages back end calls.

The back end calls every function with a list of instances and takes a result or an exception for each. Users'
functions get numpy arrays, str for strings and uint8 arrays for bytes, and return arrays, numbers, str or bytes, one
instance at a time or as an iterable. Runs in the worker. Errors have the original's form.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from millpond.compat.mindspore_serving.server.register.recording import StageFunction
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.tensors import NUMPY_TYPES

Instances = Sequence[tuple[Any, ...]]
_log = logging.getLogger("millpond.mindspore")
_DTYPES = frozenset(NUMPY_TYPES.values()) - {np.dtype(object)}


def wrap_function(function: StageFunction) -> Callable[[Instances], list[Any]]:
    """Returns the function as the back end calls it."""
    run = _run_batch if function.takes_batch else _run_each

    def call(instances: Instances) -> list[Any]:
        given = [tuple(to_python(value) for value in instance) for instance in instances]
        results = list(run(function, given))
        return [result if isinstance(result, Exception) else _unpack(result) for result in results]

    return call


def to_python(value: Any) -> Any:
    """Returns an input as a function sees it."""
    if not isinstance(value, np.ndarray) or value.dtype != object or value.size != 1:
        return value
    item = value.item()
    if value.ndim == 0:
        return item.decode() if isinstance(item, bytes) else str(item)
    return np.frombuffer(item if isinstance(item, bytes) else str(item).encode(), dtype=np.uint8)


def to_array(value: Any) -> Any:
    """Returns an output as an array.

    Raises:
        RuntimeError: It is of no type that can be sent.
    """
    to_numpy = getattr(value, "asnumpy", None)
    if callable(to_numpy):
        value = to_numpy()
    if isinstance(value, (str, bytes)):
        array = np.empty((1,), dtype=object)
        array[0] = value if isinstance(value, bytes) else value.encode()
        return array if isinstance(value, bytes) else array.reshape(())
    if isinstance(value, (bool, int, float, np.ndarray, np.generic)):
        array = np.asarray(value)
        if array.dtype.newbyteorder("=") in _DTYPES:
            return np.ascontiguousarray(array).reshape(array.shape)
        if isinstance(value, np.ndarray) and value.dtype == object:
            return value  # an input that is passed on
    raise RuntimeError(f"Get illegal result data with type {type(value)}")


def failed(name: str, reason: object) -> ServableError:
    """Returns the error of an instance whose function failed."""
    return ServableError("internal", f"Call Function '{name}' Failed, {reason}")


def _unpack(result: tuple[Any, ...]) -> Any:
    return result[0] if len(result) == 1 else result


def _run_each(function: StageFunction, instances: Instances) -> Iterator[Any]:
    for instance in instances:
        try:
            yield _check(function, function.call(*instance))
        except Exception as error:
            yield _note(function, error)


def _run_batch(function: StageFunction, instances: Instances) -> Iterator[Any]:
    """A generator that fails at one instance is started again for those after it."""
    left = list(instances)
    while left:
        try:
            produced = _start(function, tuple(left))
        except Exception as error:
            yield from [_note(function, error)] * len(left)
            return
        while left:
            try:
                item = next(produced)
            except StopIteration:
                yield from [failed(function.name, f"it gave {len(left)} results too few")] * len(left)
                return
            except Exception as error:
                left.pop(0)
                yield _note(function, error)
                break
            try:
                result = _check(function, item)
            except Exception as error:
                yield from [_note(function, error)] * len(left)
                return
            left.pop(0)
            yield result


def _start(function: StageFunction, instances: Instances) -> Iterator[Any]:
    produced: Iterable[Any] | None = function.call(instances)
    if produced is None:
        raise RuntimeError("it returned None in place of one result an instance")
    return iter(produced)


def _check(function: StageFunction, result: Any) -> tuple[Any, ...]:
    items = tuple(result) if isinstance(result, (tuple, list)) else (result,)
    if len(items) != function.num_outputs:
        raise RuntimeError(f"length of return output {len(items)} not match signatures {function.num_outputs}")
    return tuple(to_array(item) for item in items)


def _note(function: StageFunction, error: Exception) -> ServableError:
    _log.warning("stage function %s failed", function.name, exc_info=error)
    return failed(function.name, error)
