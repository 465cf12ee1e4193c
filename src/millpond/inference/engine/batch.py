"""Runs a batch of requests on a core in this process, to the end.

Owns the loop that the engine process and the client share otherwise: steps, text, stop strings, and the rounds of beam
searches. Called by `LLM`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import msgspec

from millpond.api.request import OutputEvent, Request, TokenLogprob
from millpond.inference.engine.beam import BeamSearch, beam_event, beam_failures
from millpond.inference.engine.core import EngineCore, StepFailedError
from millpond.inference.engine.messages import SequenceOutput
from millpond.inference.engine.output import EventBuffer, RequestText
from millpond.inference.text import Tokenizer


class _Task(Protocol):
    """One request on its way."""

    def start(self) -> None: ...

    def take(self, output: SequenceOutput) -> None: ...

    @property
    def events(self) -> list[OutputEvent] | None:
        """One for each choice once the request is finished."""


class OfflineBatch:
    """One batch; used once.

    Args:
        core: Idle, and nobody else's while the batch runs.
        tokenizer: For the text.
        eos_token_ids: What ends a beam.
    """

    def __init__(self, core: EngineCore, tokenizer: Tokenizer, eos_token_ids: Iterable[int]) -> None:
        self._core = core
        self._tokenizer = tokenizer
        self._eos_token_ids = tuple(eos_token_ids)
        self._task_of: dict[str, _Task] = {}  # by the id the core knows
        self._ids = itertools.count()

    def run(self, requests: Sequence[Request], on_finished: Callable[[int], None]) -> list[list[OutputEvent]]:
        """Runs the requests and returns for each one event a choice, with all its output.

        Args:
            requests: Admitted ones.
            on_finished: Told how many are done, whenever that changes.

        Raises:
            RequestError: A grammar cannot be compiled.
            Exception: Whatever a failed step raised. In every case the core is idle afterwards.
        """
        tasks: list[_Task] = [
            _BeamTask(self, request) if request.params.beam_width > 1 else _PlainTask(self, request)
            for request in requests
        ]
        try:
            for task in tasks:
                task.start()
            num_finished = 0
            while self._core.has_work:
                for output in self._core.step():
                    task = self._task_of[output.request_id]
                    if task.events is None:
                        task.take(output)
                        num_finished += task.events is not None
                on_finished(num_finished)
        except StepFailedError as failure:
            raise failure.__cause__ or failure from None
        finally:
            for request_id in self._task_of:
                self._core.cancel(request_id)
        return [task.events or [] for task in tasks]

    def add(self, request: Request, task: _Task) -> str:
        """Gives the core a request, under an id of its own, whose outputs `task` takes."""
        request_id = str(next(self._ids))
        self._task_of[request_id] = task
        self._core.add(msgspec.structs.replace(request, request_id=request_id))
        return request_id

    def text_of(self, request: Request) -> RequestText:
        """Returns what turns a request's tokens into text."""
        return RequestText(request, self._tokenizer)

    def search_for(self, request: Request) -> BeamSearch:
        """Returns the beam search a request asks for."""
        return BeamSearch(request.params, self._eos_token_ids)

    def beam_events(self, request: Request, search: BeamSearch) -> list[OutputEvent]:
        """Returns the best continuations of a search that is done."""
        best = search.best(request.params.n)
        return [beam_event(request, index, beam, self._tokenizer) for index, beam in enumerate(best)]

    def cancel(self, request_id: str, index: int) -> None:
        """Stops a sequence that the core still runs."""
        self._core.cancel(request_id, index)


class _PlainTask:
    def __init__(self, batch: OfflineBatch, request: Request) -> None:
        self._batch = batch
        self._request = request
        self._text = batch.text_of(request)
        self._buffers = [EventBuffer() for _ in range(request.params.n)]
        # Without stop strings nothing depends on the text before the end: it is made once, not once a step.
        self._held: dict[int, SequenceOutput] | None = None if request.params.stop else {}
        self.events: list[OutputEvent] | None = None

    def start(self) -> None:
        self._batch.add(self._request, self)

    def take(self, output: SequenceOutput) -> None:
        if self._held is not None:
            held = self._held.setdefault(output.index, output)
            if held is not output:
                held.merge(output)
            if held.finish_reason is None:
                return
            output = self._held.pop(output.index)
        event = self._text.push(output)
        if event is None:
            return
        self._buffers[event.index].add(event)
        if isinstance(event.stop_reason, str):
            self._batch.cancel(output.request_id, output.index)
        if self._text.is_finished:
            self.events = [event for buffer in self._buffers if (event := buffer.take()) is not None]


class _BeamTask:
    def __init__(self, batch: OfflineBatch, request: Request) -> None:
        self._batch = batch
        self._request = request
        self._search = batch.search_for(request)
        self._answers: dict[str, TokenLogprob | None] = {}  # by request, in the order of the beams
        self.events: list[OutputEvent] | None = None

    def start(self) -> None:
        self._answers = {}
        for beam in self._search.beams:
            asked = self._search.token_request(self._request, beam)
            self._answers[self._batch.add(asked, self)] = None

    def take(self, output: SequenceOutput) -> None:
        if output.error is not None or not output.logprobs:
            self.events = beam_failures(self._request, output.finish_reason or "error", output.error)
            return
        self._answers[output.request_id] = output.logprobs[0]
        answers = [answer for answer in self._answers.values() if answer is not None]
        if len(answers) < len(self._search.beams):
            return
        self._search.advance(answers)
        if self._search.is_done:
            self.events = self._batch.beam_events(self._request, self._search)
        else:
            self.start()
