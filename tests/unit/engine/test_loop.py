"""The engine's loop on a real socket pair, in a thread, with a fake executor behind it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from millpond.api.request import Request, SamplingParams
from millpond.inference.engine.core import EngineCore
from millpond.inference.engine.loop import EngineLoop
from millpond.inference.engine.messages import (
    Cancel,
    Commands,
    FrameReader,
    SequenceOutput,
    StepOutput,
    encode,
    from_engine_decoder,
)
from tests.support.fake_executor import FakeExecutor, expected_tokens, make_config, make_core


class Gateway:
    """The other end of the line, and the loop's thread."""

    def __init__(self, core: EngineCore, executor: FakeExecutor) -> None:
        self.core, self.executor = core, executor
        self.sock, self.theirs = socket.socketpair()
        self.sock.settimeout(20)
        self._frames, self._decoder = FrameReader(), from_engine_decoder()
        self._steps: list[StepOutput] = []
        self.result: list[Any] = []
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def send(self, *add: Request, cancel: tuple[Cancel, ...] = ()) -> None:
        self.sock.sendall(encode(Commands(list(add), list(cancel))))

    def step(self) -> StepOutput:
        while not self._steps:
            data = self.sock.recv(1 << 16)
            assert data, "the engine hung up"
            messages = [self._decoder.decode(frame) for frame in self._frames.feed(data)]
            self._steps += [message for message in messages if isinstance(message, StepOutput)]
        return self._steps.pop(0)

    def until_finished(self, request_id: str, index: int = 0) -> list[SequenceOutput]:
        outputs = []
        while True:
            for output in self.step().outputs:
                if (output.request_id, output.index) == (request_id, index):
                    outputs.append(output)
                    if output.finish_reason is not None:
                        return outputs

    def hang_up(self) -> None:
        self.sock.close()
        self.thread.join(20)
        assert not self.thread.is_alive()
        self.theirs.close()

    def _run(self) -> None:
        self.result.append(EngineLoop(self.core, self.theirs, FrameReader()).run())


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    gateway = Gateway(*make_core(make_config(max_sequences=4, max_queue=4, num_blocks=128)))
    yield gateway
    gateway.hang_up()


def greedy(request_id: str, length: int = 5, **changes: object) -> Request:
    params = SamplingParams(**({"temperature": 0.0, "max_tokens": 12, "ignore_eos": True} | changes))  # type: ignore[arg-type]
    return Request(request_id, list(range(3, 3 + length)), params)


def tokens_of(outputs: list[SequenceOutput]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


def test_one_message_a_step_carries_every_sequence(gateway: Gateway) -> None:
    gateway.send(greedy("a"), greedy("b", 9))
    step = gateway.step()
    assert {output.request_id for output in step.outputs} == {"a", "b"}
    assert step.stats.num_running == 2


def test_an_idle_engine_takes_up_work_that_comes_later(gateway: Gateway) -> None:
    for request_id in ("a", "b"):
        gateway.send(greedy(request_id))
        assert tokens_of(gateway.until_finished(request_id)) == expected_tokens(range(3, 8), 12, eos=None)


def test_a_cancel_is_answered_with_the_freed_blocks(gateway: Gateway) -> None:
    gateway.executor.step_seconds = 0.005
    gateway.send(greedy("a", max_tokens=200))
    gateway.step()
    gateway.send(cancel=(Cancel("a"),))
    while (step := gateway.step()).outputs:
        pass
    assert step.stats.num_free_blocks == step.stats.num_blocks


def test_a_request_the_scheduler_refuses_gets_an_error_and_no_more(gateway: Gateway) -> None:
    gateway.send(greedy("a", n=4), greedy("b", n=4), greedy("c"))
    (refused,) = gateway.step().outputs
    assert refused.request_id == "c"
    assert refused.error is not None
    assert refused.error.code == "queue_full"


def test_nothing_is_lost_when_the_gateway_does_not_read(gateway: Gateway) -> None:
    """Four sequences with log-probabilities write more than the socket's buffers hold."""
    gateway.theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    gateway.send(*(greedy(str(i), 5 + i, max_tokens=200, logprobs=20) for i in range(4)))
    while gateway.core.stats().output_tokens_total < 800:  # it goes on while nobody reads
        time.sleep(0.01)
    outputs: dict[str, list[SequenceOutput]] = {}
    while sum(chunk[-1].finish_reason is not None for chunk in outputs.values()) < 4:
        for output in gateway.step().outputs:
            outputs.setdefault(output.request_id, []).append(output)
    for i in range(4):
        chunks = outputs[str(i)]
        assert tokens_of(chunks) == expected_tokens(range(3, 8 + i), 200, eos=None)
        told = [token.token_id for chunk in chunks for token in chunk.logprobs or ()]
        assert told == tokens_of(chunks)
        assert len(chunks) < 200


def test_the_loop_ends_when_the_gateway_hangs_up_in_the_middle() -> None:
    gateway = Gateway(*make_core())
    gateway.executor.step_seconds = 0.005
    gateway.send(greedy("a", max_tokens=200))
    gateway.step()
    gateway.hang_up()
    assert gateway.result == [True]


def test_a_failed_step_is_told_and_the_loop_goes_on(gateway: Gateway) -> None:
    gateway.executor.failures.append(ValueError("no such tile"))
    gateway.send(greedy("a"))
    (failed,) = gateway.until_finished("a")
    assert failed.error is not None
    assert "no such tile" in failed.error.message
    gateway.send(greedy("b"))
    assert tokens_of(gateway.until_finished("b")) == expected_tokens(range(3, 8), 12, eos=None)


def test_the_loop_gives_up_when_step_after_step_fails() -> None:
    gateway = Gateway(*make_core())
    gateway.executor.failures += [ValueError("broken")] * 3
    for request_id in ("a", "b", "c"):
        gateway.send(greedy(request_id))
        assert gateway.until_finished(request_id)[-1].finish_reason == "error"
    gateway.thread.join(20)
    assert gateway.result == [False]
    gateway.hang_up()


def test_a_step_that_works_forgives_the_failures_before_it(gateway: Gateway) -> None:
    for number in range(5):
        gateway.executor.failures.append(ValueError("now and then"))
        gateway.send(greedy(f"bad{number}"))
        gateway.until_finished(f"bad{number}")
        gateway.send(greedy(f"good{number}"))
        assert gateway.until_finished(f"good{number}")[-1].finish_reason == "length"
