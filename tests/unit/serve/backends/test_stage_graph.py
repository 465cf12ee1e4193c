"""Graphs that make no sense are refused when they are loaded."""

from __future__ import annotations

import pytest

from millpond.serve.backends.stage_graph import METHOD_INPUTS, FunctionStage, MethodGraph, ModelStage, Stage, Value
from millpond.serve.servables.tensors import TensorSpec

X, Y = TensorSpec("x", "", ()), TensorSpec("y", "", ())
INPUT = Value(METHOD_INPUTS)


def graph(*stages: Stage, results: tuple[Value, ...], streams: bool = False) -> MethodGraph:
    return MethodGraph("m", (X,), (Y,), stages, results, streams=streams)


@pytest.mark.parametrize(
    "method",
    [
        graph(results=(INPUT,)),
        graph(FunctionStage("f", (INPUT,), 2), ModelStage("n", (Value(0, 1), INPUT)), results=(Value(1),)),
        graph(FunctionStage("f", (INPUT,), streams=True), results=(Value(0),), streams=True),
    ],
)
def test_sound_graphs_pass(method: MethodGraph) -> None:
    assert method.check() is None


@pytest.mark.parametrize(
    ("method", "text"),
    [
        (graph(FunctionStage("f", (Value(1),)), results=(Value(0),)), "stage 1 uses a value that no earlier stage"),
        (graph(FunctionStage("f", (Value(METHOD_INPUTS, 1),)), results=(Value(0),)), "stage 1 uses a value"),
        (graph(FunctionStage("f", (INPUT,)), results=(Value(0, 1),)), "the result uses a value"),
        (graph(results=(INPUT, INPUT)), "has 1 outputs but returns 2 values"),
        (
            graph(FunctionStage("f", (INPUT,), streams=True), FunctionStage("g", (INPUT,)), results=(Value(1),)),
            "stage 1 streams but is not the last",
        ),
        (graph(FunctionStage("f", (INPUT,)), results=(Value(0),), streams=True), "its last stage is no generator"),
    ],
)
def test_others_say_what_is_wrong(method: MethodGraph, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        method.check()
