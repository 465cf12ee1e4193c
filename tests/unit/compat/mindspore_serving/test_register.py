"""Registering: what is recorded, and the texts of what is refused (those of the original's own test suite)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from millpond.compat.mindspore_serving.server import register
from millpond.compat.mindspore_serving.server.register.recording import Recording, Stage, record


@pytest.fixture
def recording() -> Iterator[Recording]:
    with record("add") as made:
        yield made


def run_config(text: str, folder: Path) -> None:
    """Runs a servable's file; from a real file, because the older calls read the source."""
    import linecache

    path = folder / "servable_config.py"
    path.write_text(text)
    linecache.checkcache(str(path))
    exec(compile(text, str(path), "exec"), {"register": register})


def add(x1: Any, x2: Any) -> Any:
    return x1 + x2


def batch_add(instances: Any) -> Any:
    return [one[0] + one[1] for one in instances]


def test_a_method_becomes_stages_in_order(recording: Recording) -> None:
    model = register.declare_model("tensor_add.mindir", "MindIR", with_batch_dim=False)

    @register.register_method(output_names=["y"])
    def add_cast(x1: Any, x2: Any) -> Any:
        total = register.add_stage(add, x1, x2, outputs_count=1, tag="Sum")
        return register.add_stage(model, total, x2, outputs_count=1)

    method = recording.methods["add_cast"]
    assert (method.inputs, method.outputs, method.returns) == (("x1", "x2"), ("y",), ((2, 0),))
    assert method.stages == (
        Stage("function", "add.add", ((0, 0), (0, 1)), 1, tag="Sum"),
        Stage("model", "tensor_add.mindir", ((1, 0), (0, 1)), 1),
    )


def test_a_method_may_return_its_inputs(recording: Recording) -> None:
    @register.register_method(output_names=["a", "b"])
    def swap(x1: Any, x2: Any) -> Any:
        return x2, x1

    assert recording.methods["swap"].returns == ((0, 1), (0, 0))


def test_files_of_a_model_are_its_subgraphs(recording: Recording) -> None:
    model = register.declare_model(["a.mindir", "b.mindir"], "mindir", without_batch_dim_inputs=1)
    assert model.model_key == "a.mindir;b.mindir"
    assert recording.models[model.model_key].without_batch_dim_inputs == (1,)


def wrong_formats() -> Iterator[tuple[Any, ...]]:
    yield {"model_file": 1, "model_format": "MindIR"}, "Parameter 'model_file' should be str or tuple/list of str"
    yield {"model_file": "", "model_format": "MindIR"}, "should not be empty str"
    yield {"model_file": "a", "model_format": "tflite"}, "model format can only be OM, MindIR or MindIR_Opt"
    yield {"model_file": "a", "model_format": "MindIR", "with_batch_dim": 1}, "'with_batch_dim' should be bool"
    yield {"model_file": "a", "model_format": "MindIR", "context": 1}, "Parameter 'context' should be Context"
    yield {"model_file": "a", "model_format": "MindIR", "options": 1}, "should be None, GpuOptions or AclOptions"
    yield (
        {"model_file": "a", "model_format": "MindIR", "without_batch_dim_inputs": -1},
        "The item value '-1' in parameter 'without_batch_dim_inputs' should be >= 0",
    )


@pytest.mark.usefixtures("recording")
@pytest.mark.parametrize(("arguments", "text"), list(wrong_formats()))
def test_wrong_arguments_of_a_model_are_named(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(RuntimeError, match=text):
        register.declare_model(**arguments)


@pytest.mark.usefixtures("recording")
def test_a_model_file_is_declared_once() -> None:
    register.declare_model(["tensor_add.mindir", "tensor_sub.mindir"], "MindIR")
    with pytest.raises(RuntimeError, match=r"model file .tensor_add\.mindir. has already been used"):
        register.declare_model("tensor_add.mindir", "MindIR")


@pytest.mark.usefixtures("recording")
@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("def f(x1, **x2):\n    return x1", "'f' input x2 cannot be VAR_KEYWORD !"),
        ("def f(x1, *x2):\n    return x1", "'f' input x2 cannot be VAR_POSITIONAL !"),
        ("def f(x1, *, x2):\n    return x1", "'f' input x2 cannot be KEYWORD_ONLY !"),
        ("def f(x1):\n    return 1", "Each value returned is a placeholder for data and must come from the method"),
        ("def f(x1):\n    return x1, x1", "Method return output size 2 not match registered 1"),
        ("def f(x1):\n    return register.add_stage(add, x1, 1, outputs_count=1)", "Each value of parameter"),
        (
            "def f(x1):\n    return register.add_stage(add, x1, outputs_count=1)",
            "function add input args count 2 not match the count 1 registered in method",
        ),
        ("def f(x):\n    return register.add_stage(1, x, outputs_count=1)", "must be function or Model returned by"),
        ("def f(x):\n    y, z = register.add_stage(one, x, outputs_count=1)\n    return y", "cannot unpack non-it"),
        (
            "def f(x):\n    return register.add_stage(one, x, outputs_count=1, batch_size=-1)",
            "Parameter 'batch_size' should be >= 0",
        ),
        ("def f(x):\n    return register.add_stage('no.such', x, outputs_count=1)", "'no.such' is no stage function"),
    ],
)
def test_methods_that_cannot_be_recorded_are_refused(body: str, text: str) -> None:
    names = {"register": register, "add": add, "one": lambda x: x}
    with pytest.raises((RuntimeError, TypeError), match=text):
        exec(f'@register.register_method(output_names=["y"])\n{body}', names)


@pytest.mark.usefixtures("recording")
@pytest.mark.parametrize(
    ("second", "text"),
    [
        ("register.add_stage(batch_add, x1, x2, x1, outputs_count=1, batch_size=4)", "inputs count 3 not match last"),
        ("register.add_stage(batch_add, x1, x2, outputs_count=2, batch_size=4)[0]", "outputs count 2 not match last"),
        ("register.add_stage(model, x1, outputs_count=1)", "inputs count 1 not match old count 2"),
        ("register.add_stage(model, x1, x2, outputs_count=2)[0]", "outputs count 2 not match old count 1"),
    ],
)
def test_stages_are_used_alike_in_all_methods(second: str, text: str) -> None:
    model = register.declare_model("m.mindir", "MindIR")
    names = {"register": register, "batch_add": batch_add, "model": model}
    head = '@register.register_method(output_names=["y"])\ndef'
    exec(
        f"{head} first(x1, x2):\n    y = register.add_stage(batch_add, x1, x2, outputs_count=1, batch_size=4)\n"
        f"    return register.add_stage(model, y, x2, outputs_count=1)",
        names,
    )
    with pytest.raises(RuntimeError, match=text):
        exec(f"{head} second(x1, x2):\n    return {second}", names)


@pytest.mark.usefixtures("recording")
def test_a_function_takes_batches_always_or_never() -> None:
    @register.register_method(output_names="y")
    def first(x1: Any, x2: Any) -> Any:
        return register.add_stage(add, x1, x2, outputs_count=1)

    with pytest.raises(RuntimeError, match="parameter 'batch_size' in multiple 'add_stage' should be enabled or"):

        @register.register_method(output_names="y")
        def second(x1: Any, x2: Any) -> Any:
            return register.add_stage(add, x1, x2, outputs_count=1, batch_size=4)


@pytest.mark.usefixtures("recording")
def test_a_method_is_registered_once() -> None:
    def twice(x: Any) -> Any:
        return x

    register.register_method("y")(twice)
    with pytest.raises(RuntimeError, match=r"Method twice has been registered more than once\."):
        register.register_method("y")(twice)


OLDER = """
register.declare_servable(servable_file="tensor_add.mindir", model_format="MindIR", with_batch_dim=False)

def cast(x1, x2):
    return x1, x2

def cast_all(instances):
    return instances

@register.register_method(output_names=["y"])
def add_cast(x1, x2):
"""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_older_calls_read_the_number_of_outputs_from_the_source(recording: Recording, tmp_path: Path) -> None:
    run_config(
        OLDER
        + """
    x1, x2 = register.call_preprocess_pipeline(cast_all, x1, x2)  # cast input to float32
    y = register.call_servable(x1, x2)
    a, b = register.call_postprocess(cast, y, y)
    return b
""",
        tmp_path,
    )
    method = recording.methods["add_cast"]
    assert [(stage.name, stage.num_outputs, stage.tag) for stage in method.stages] == [
        ("add.cast_all", 2, "Preprocess"),
        ("tensor_add.mindir", 1, ""),
        ("add.cast", 2, "Postprocess"),
    ]
    assert recording.functions["add.cast_all"].takes_batch
    assert method.returns == ((3, 1),)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.usefixtures("recording")
@pytest.mark.parametrize(
    ("lines", "text"),
    [
        (("y = register.call_servable(x1, x2)", "y = register.call_servable(x1, x2)"), "should not be invoked more"),
        (
            ("y = register.call_servable(x1, x2)", "x1, x2 = register.call_preprocess(cast, x1, x2)"),
            "call_servable should be invoked after call_preprocess",
        ),
        (("x1, x2 = register.call_preprocess(cast, x1, x2)", "y = x1"), "Failed to parse method 'add_cast', complex"),
        (("if x1:", "    y = register.call_servable(x1, x2)"), "Not find the invoke of 'call_servable'"),
        (("x1, y = register.call_preprocess(cast, x1, x2)",), "Not find the invoke of 'call_servable'"),
        (("y = register.call_servable()",), "Invalid 'call_servable' invoke args"),
    ],
)
def test_the_older_calls_are_checked_for_order_and_form(lines: tuple[str, ...], text: str, tmp_path: Path) -> None:
    body = "".join(f"    {line}\n" for line in lines)
    with pytest.raises(RuntimeError, match=text):
        run_config(f"{OLDER}{body}    return y\n", tmp_path)


@pytest.mark.usefixtures("recording")
def test_device_contexts_are_checked() -> None:
    context = register.Context(thread_num=1, thread_affinity_core_list=[1, 2], enable_parallel=True)
    context.append_device_info(register.GPUDeviceInfo(precision_mode="fp16"))
    context.append_device_info(register.AscendDeviceInfo(input_format="NCHW"))
    register.declare_model("a.mindir", "MindIR", context=context)
    with pytest.raises(RuntimeError, match="Device info of type gpu has already been appended"):
        context.append_device_info(register.GPUDeviceInfo())
    with pytest.raises(RuntimeError, match="Gpu device info 'precision_mode' can only be 'origin', 'fp16'"):
        register.GPUDeviceInfo(precision_mode="int4")
    with pytest.raises(RuntimeError, match="unsupported option precision"):
        register.CPUDeviceInfo(precision="fp16")
    with pytest.raises(RuntimeError, match="Set context failed, unsupported option threads"):
        register.Context(threads=1)


def test_calling_a_model_checks_the_form_of_its_inputs(recording: Recording) -> None:
    model = register.declare_model("m.mindir", "MindIR")
    for arguments, text in (
        ((), "no inputs provided"),
        (([],), "Input instances count is 0"),
        (([1, 2],), "inputs format invalid"),
        ((1,), "the model is not loaded yet"),
    ):
        with pytest.raises(RuntimeError, match=text):
            model.call(*arguments)
    with pytest.raises(RuntimeError, match=r"Model\(other.mindir\).call\(\) failed: the model is not declared"):
        register.model.Model("other.mindir").call(1)
    recording.run_model = lambda key, instances, subgraph: tuple((sum(one), subgraph) for one in instances)
    assert model.call(1, 2, subgraph=3) == (3, 3)
    assert model.call([[1, 2], (3, 4)]) == ((3, 0), (7, 0))
