"""The older way to write a method: `call_preprocess`, `call_servable`, `call_postprocess` and their pipeline forms.

They do not say how many outputs a stage has, so that is read from the method's source: `a, b = call_...(...)`. Hence
the source must be a plain list of statements. Each becomes one `add_stage`.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from typing import Any

from millpond.compat.mindspore_serving.server.register.method import MethodInWork, add_stage, method_in_work
from millpond.compat.mindspore_serving.server.register.model import Model, warn_deprecated
from millpond.compat.mindspore_serving.server.register.recording import current

_PREPROCESS = ("call_preprocess", "call_preprocess_pipeline")
_POSTPROCESS = ("call_postprocess", "call_postprocess_pipeline")
_SERVABLE = ("call_servable",)
_CALLS = _PREPROCESS + _SERVABLE + _POSTPROCESS


def call_preprocess(preprocess_fun: Callable[..., Any], *args: Any) -> Any:
    """A function for one instance, before the model."""
    return _call("call_preprocess", preprocess_fun, args, tag="Preprocess")


def call_preprocess_pipeline(preprocess_fun: Callable[..., Any], *args: Any) -> Any:
    """A function for many instances, before the model."""
    return _call("call_preprocess_pipeline", preprocess_fun, args, tag="Preprocess", takes_batch=True)


def call_servable(*args: Any) -> Any:
    """The declared model."""
    name = method_in_work().name
    models = current().models
    if not models:
        raise RuntimeError("There is no model declared, you can use declare_model to declare models.")
    if len(models) > 1:
        raise RuntimeError(
            f"There are more than one servable declared when the interface 'call_servable' is used in method "
            f"'{name}', use 'add_stage' to replace 'call_servable'"
        )
    return _call("call_servable", Model(next(iter(models))), args, tag=None)


def call_postprocess(postprocess_fun: Callable[..., Any], *args: Any) -> Any:
    """A function for one instance, after the model."""
    return _call("call_postprocess", postprocess_fun, args, tag="Postprocess")


def call_postprocess_pipeline(postprocess_fun: Callable[..., Any], *args: Any) -> Any:
    """A function for many instances, after the model."""
    return _call("call_postprocess_pipeline", postprocess_fun, args, tag="Postprocess", takes_batch=True)


def _call(
    call: str, stage: Callable[..., Any] | Model, args: tuple[Any, ...], *, tag: str | None, takes_batch: bool = False
) -> Any:
    warn_deprecated(call, "add_stage")
    method = method_in_work()
    _check_order(method, call)
    if method.older_calls is None:
        method.older_calls = _read_source(method)
    num_outputs = method.older_calls.get(call)
    if num_outputs is None:
        raise _too_complex(method.name, call)
    method.called.add(call)
    batch_size = 0 if takes_batch else None
    return add_stage(stage, *args, outputs_count=num_outputs, batch_size=batch_size, tag=tag)


def _check_order(method: MethodInWork, call: str) -> None:
    groups = (_PREPROCESS, _SERVABLE, _POSTPROCESS)
    place = next(index for index, group in enumerate(groups) if call in group)
    for later in groups[place:]:
        if not method.called.intersection(later):
            continue
        names = " or ".join(groups[place])
        if later is groups[place]:
            raise RuntimeError(
                f"Check failed in method '{method.name}', {names} should not be invoked more than once"
            )
        raise RuntimeError(
            f"Check failed in method '{method.name}', {' or '.join(later)} should be invoked after {call}"
        )


def _too_complex(method: str, calls: str) -> RuntimeError:
    return RuntimeError(
        f"Failed to parse method '{method}', complex statements such as conditions and loops are not supported in "
        f"register_method when the interface '{calls}' is used, use 'add_stage' to replace '{calls}'"
    )


def _read_source(method: MethodInWork) -> dict[str, int]:
    """Returns how many outputs each call of the method's source has."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(method.function)))
    except (OSError, SyntaxError) as error:
        raise RuntimeError(f"Failed to parse method '{method.name}': {error}") from None
    function = tree.body[0]
    assert isinstance(function, ast.FunctionDef)
    found: dict[str, int] = {}
    is_plain = True
    for statement in function.body:
        if isinstance(statement, (ast.Return, ast.Expr)):
            continue
        read = _read_assignment(statement)
        if read is None:
            is_plain = False
        else:
            found[read[0]] = read[1]
    if found and not is_plain:
        raise _too_complex(method.name, ";".join(found))
    if "call_servable" not in found:
        raise RuntimeError("Not find the invoke of 'call_servable'")
    return found


def _read_assignment(statement: ast.stmt) -> tuple[str, int] | None:
    if not isinstance(statement, ast.Assign) or not isinstance(statement.value, ast.Call):
        return None
    called = statement.value.func
    name = called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""
    target = statement.targets[0]
    if name not in _CALLS or not isinstance(target, (ast.Name, ast.Tuple)):
        return None
    num_inputs = len(statement.value.args) - (name not in _SERVABLE)
    if num_inputs <= 0:
        raise RuntimeError(f"Invalid '{name}' invoke args")
    return name, len(target.elts) if isinstance(target, ast.Tuple) else 1
