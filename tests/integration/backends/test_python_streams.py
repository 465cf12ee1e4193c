"""Decoupled Python models: any number of responses, from threads and coroutines, errors among them, cancelled ones."""

from __future__ import annotations

import asyncio
import logging

import numpy as np
import pytest

from tests.integration.backends.conftest import Bench, request
from tests.integration.backends.test_python import NUMBERS, ONE

DECOUPLED = "model_transaction_policy { decoupled: True }"


async def test_a_decoupled_model_answers_any_number_of_times_from_its_own_threads(bench: Bench) -> None:
    await bench.add(
        "repeat",
        NUMBERS % ("repeat", 0) + DECOUPLED,
        """
        import threading, time, numpy as np
        import triton_python_backend_utils as pb
        class TritonPythonModel:
            def execute(self, requests):
                for request in requests:
                    threading.Thread(target=self.answer, args=(request,), daemon=True).start()
            def answer(self, request):
                sender = request.get_response_sender()
                for value in request.inputs()[0].as_numpy():
                    sender.send(pb.InferenceResponse([pb.Tensor("OUT", np.array([value], np.int32))]))
                    time.sleep(0.01)
                sender.send(flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
                try:
                    sender.send(pb.InferenceResponse([]))
                except pb.TritonModelException as error:
                    pb.Logger.log_error(str(error))
        """,
    )

    async def ask(values: list[int]) -> list[int]:
        got = []
        async for response in bench.servables.stream(request("repeat", {"IN": np.array(values, np.int32)})):
            got += [int(tensor.array[0]) for tensor in response.outputs.values()]
        return got

    wanted = [list(range(n, n + 5)) for n in range(0, 40, 5)] + [[]]
    assert await asyncio.gather(*map(ask, wanted)) == wanted


async def test_errors_in_a_stream_are_responses(bench: Bench) -> None:
    await bench.add(
        "boom",
        NUMBERS % ("boom", 0) + DECOUPLED,
        """
        import triton_python_backend_utils as pb
        class TritonPythonModel:
            async def execute(self, requests):
                for request in requests:
                    number = int(request.inputs()[0].as_numpy()[0])
                    sender = request.get_response_sender()
                    if number == 0:
                        error = pb.TritonError("model said boom", pb.TritonError.INVALID_ARG)
                        sender.send(pb.InferenceResponse(error=error))
                        sender.send(flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
                    elif number == 1:
                        raise KeyError("gone")
        """,
    )
    stream = bench.servables.stream(request("boom", {"IN": np.array([0], np.int32)}))
    first = await anext(stream)
    assert first.error is not None
    assert (first.error.code, first.error.message, first.final) == ("invalid_argument", "model said boom", False)
    assert (await anext(stream)).final
    raised = await bench.first("boom", {"IN": np.array([1], np.int32)})
    assert raised.error is not None
    assert "KeyError: 'gone'\n\nAt:\n  boom/1/model.py" in raised.error.message
    dropped = await bench.first("boom", {"IN": np.array([2], np.int32)})
    assert dropped.error is not None
    assert dropped.error.message == "The model dropped the request without a final response."


async def test_a_model_knows_that_its_stream_was_cancelled(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    await bench.add(
        "endless",
        NUMBERS % ("endless", 0) + DECOUPLED,
        """
        import time
        import triton_python_backend_utils as pb
        class TritonPythonModel:
            def execute(self, requests):
                sender = requests[0].get_response_sender()
                while not sender.is_cancelled():
                    sender.send(pb.InferenceResponse([pb.Tensor("OUT", requests[0].inputs()[0].as_numpy())]))
                    time.sleep(0.005)
                print("cancelled")
                sender.send(flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        """,
    )
    stream = bench.servables.stream(request("endless", ONE))
    await anext(stream)
    await stream.aclose()  # type: ignore[attr-defined]  # of the kind used here
    async with asyncio.timeout(20):
        while "endless_0_0: cancelled" not in [record.getMessage() for record in caplog.records]:
            await asyncio.sleep(0.01)


async def test_a_rescheduled_request_is_executed_again_until_it_is_done(bench: Bench) -> None:
    config = NUMBERS % ("again", 1) + DECOUPLED + " sequence_batching { iterative_sequence: true }"
    await bench.add(
        "again",
        config.replace("dims: [ -1 ]", "dims: [ 1 ]"),
        """
        import numpy as np
        import triton_python_backend_utils as pb
        class TritonPythonModel:
            def initialize(self, args):
                self.left = {}
            def execute(self, requests):
                for request in requests:
                    key = request.correlation_id()
                    left = self.left.get(key, int(request.inputs()[0].as_numpy()[0, 0]))
                    sender = request.get_response_sender()
                    sender.send(pb.InferenceResponse([pb.Tensor("OUT", np.array([[left]], np.int32))]))
                    if left > 1:
                        self.left[key] = left - 1
                        request.set_release_flags(pb.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
                    else:
                        self.left.pop(key, None)
                        sender.send(flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        """,
    )
    seen = []
    async with asyncio.timeout(30):
        async for response in bench.servables.stream(request("again", {"IN": np.array([[3]], np.int32)})):
            seen += [int(tensor.array[0, 0]) for tensor in response.outputs.values()]
    assert seen == [3, 2, 1]
