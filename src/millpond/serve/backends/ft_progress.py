"""How far the rows of one FasterTransformer request are: follows their streams and says when a response is due.

Owns the tokens of every row and beam, and stop words of several tokens, which the engine does not look for. A streamed
response comes when every row that still runs has one token more. Knows no tensors.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

from millpond.api.request import OutputEvent
from millpond.inference.engine.stream import OutputStream
from millpond.serve.backends.engine_model import check_event
from millpond.serve.backends.ft_output import Beam
from millpond.serve.backends.ft_request import FtRequest, FtRow


class Progress:
    """The rows of one request, while they run."""

    def __init__(self, request: FtRequest) -> None:
        self._request = request
        self._beams = [[Beam() for _ in range(request.beam_width)] for _ in request.rows]
        self._open = {index for index, row in enumerate(request.rows) if row.num_tokens}
        self._changed = asyncio.Event()

    async def follow(self, index: int, stream: OutputStream) -> None:
        """Takes a row's events until it ends, and closes its stream.

        Raises:
            ServableError: The row failed.
        """
        row = self._request.rows[index]
        try:
            async for event in stream:
                check_event(event)
                if self._take(row, self._beams[index][event.index], event):
                    break
                self._changed.set()
        finally:
            self._open.discard(index)
            self._changed.set()
            await stream.aclose()

    async def steps(
        self, tasks: Sequence[asyncio.Task[None]], *, each_token: bool
    ) -> AsyncGenerator[tuple[int, bool], None]:
        """Yields (tokens that every row has or has ended before, whether this is the last time).

        Args:
            tasks: Those that run `follow`; the first exception of one is raised here.
            each_token: Whether to yield for every token. Beams are known at the end only.
        """
        count = 0
        each_token = each_token and self._request.beam_width == 1
        while self._open:
            self._changed.clear()
            _raise_failures(tasks)
            while each_token and self._open and count < self._shortest():
                count += 1
                yield count, False
            if self._open and not self._changed.is_set():
                await self._changed.wait()
        _raise_failures(tasks)
        longest = max(len(beam.token_ids) for beams in self._beams for beam in beams)
        while each_token and count + 1 < longest:
            count += 1
            yield count, False
        yield longest, True

    def beams_after(self, count: int) -> list[list[Beam]]:
        """Returns every row's beams as they were after so many tokens."""
        return [[beam.cut(count) for beam in beams] for beams in self._beams]

    def _shortest(self) -> int:
        """Tokens of the open row that has the fewest."""
        return min(len(self._beams[index][0].token_ids) for index in self._open)

    def _take(self, row: FtRow, beam: Beam, event: OutputEvent) -> bool:
        """Notes an event's tokens; returns True when a stop word ended the row."""
        logprobs = event.logprobs or ()
        if not row.stop_words:
            beam.token_ids += event.token_ids
            beam.logprobs += [each.logprob for each in logprobs]
            return False
        for place, token_id in enumerate(event.token_ids):
            beam.token_ids.append(token_id)
            beam.logprobs += [each.logprob for each in logprobs[place : place + 1]]
            if any(_ends_with(row.prompt, beam.token_ids, word) for word in row.stop_words):
                return True
        return False


def _ends_with(prompt: list[int], generated: list[int], word: tuple[int, ...]) -> bool:
    """Whether prompt and output together end with a word whose last token was generated."""
    tail = generated[-len(word) :]
    if len(tail) < len(word):
        tail = prompt[len(prompt) - (len(word) - len(tail)) :] + tail
    return tuple(tail) == word


def _raise_failures(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        if task.done() and not task.cancelled() and (error := task.exception()) is not None:
            raise error
