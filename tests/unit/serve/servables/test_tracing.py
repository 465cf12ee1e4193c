"""A trace's times are in order, whatever the parts of an execution add up to."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from millpond.serve.servables.backend import ExecutionTiming
from millpond.serve.servables.tracing import Record, RequestTrace, TraceLevel

durations = st.integers(0, 1000)


@given(durations, durations, durations, durations, durations)
def test_the_times_of_an_execution_are_in_order(
    started_ns: int, answered_after: int, ended_after: int, input_ns: int, output_ns: int
) -> None:
    told: list[list[Record]] = []
    trace = RequestTrace(TraceLevel(times=True, tensors=False), itertools.count(1), told.append)
    trace.begin("model", 1, "", 0)
    answered_ns = started_ns + answered_after
    timing = ExecutionTiming(compute_input_ns=input_ns, compute_output_ns=output_ns)
    trace.computed(started_ns, timing, answered_ns, answered_ns + ended_after)
    trace.end(answered_ns + ended_after)
    trace.release()
    [records] = told
    stamps = [stamp["ns"] for record in records for stamp in record.get("timestamps", ())]
    assert stamps == sorted(stamps)
    assert stamps[2] == started_ns
    if input_ns + output_ns <= answered_after:  # the parts have room: each is told as it was timed
        assert stamps[3:5] == [started_ns + input_ns, answered_ns - output_ns]
