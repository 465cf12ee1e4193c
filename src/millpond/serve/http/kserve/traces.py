"""Traces of requests over HTTP: when a request came and when its answer went."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from millpond.serve.http.kserve.exchange import Exchange
from millpond.serve.kserve.server import KServe
from millpond.serve.servables.tracing import RequestTrace


def begin_trace(server: KServe, exchange: Exchange, model: str) -> RequestTrace | None:
    """Returns the trace of a request that has been read; None for most."""
    if not server.tracing.is_on:
        return None
    trace = server.tracer.sample(model)
    if trace is not None:
        trace.stamp("HTTP_RECV_START", exchange.request.began_ns)
        trace.stamp("HTTP_RECV_END", time.monotonic_ns())
    return trace


def end_trace(trace: RequestTrace, complete_ns: int) -> None:
    """Ends a trace whose answer was made at a time and has been handed to the socket."""
    trace.stamp("INFER_RESPONSE_COMPLETE", complete_ns)
    trace.stamp("HTTP_SEND_START", complete_ns)
    trace.stamp("HTTP_SEND_END", time.monotonic_ns())
    trace.release()


@contextmanager
def traced(server: KServe, exchange: Exchange, model: str) -> Iterator[RequestTrace | None]:
    """Has a request traced that is answered inside."""
    trace = begin_trace(server, exchange, model)
    try:
        yield trace
    finally:
        if trace is not None:
            end_trace(trace, time.monotonic_ns())
