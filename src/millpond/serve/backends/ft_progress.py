"""How far the rows of one FasterTransformer request are: follows their streams and says when a response is due.

Owns the tokens of every row and beam, and stop words of several tokens, which the engine does not look for. A streamed
response comes when every row that still runs has one token more, in the turn of the event loop in which the last of
those tokens came. Knows no tensors.
"""

from __future__ import annotations

from collections.abc import Callable

from millpond.api.request import OutputEvent
from millpond.inference.engine.stream import OutputStream
from millpond.serve.backends.engine_model import check_event
from millpond.serve.backends.ft_output import Beam
from millpond.serve.backends.ft_request import FtRequest, FtRow
from millpond.serve.pouring import pour
from millpond.serve.room import Room

Send = Callable[[list[list[Beam]], bool], None]


class Progress:
    """The rows of one request, while they run.

    Args:
        request: What was asked.
        send: Takes every row's beams as they are in a response, and whether it is the last one.
        room: What `send` fills.
        each_token: Whether there is a response for every token. Beams are known at the end only.
    """

    def __init__(self, request: FtRequest, send: Send, room: Room, *, each_token: bool) -> None:
        self._request = request
        self._send = send
        self._room = room
        self._each_token = each_token and request.beam_width == 1
        self._beams = [[Beam() for _ in range(request.beam_width)] for _ in request.rows]
        self._open = {index for index, row in enumerate(request.rows) if row.num_tokens}
        self._count = 0  # tokens of the last response

    async def follow(self, index: int, stream: OutputStream) -> None:
        """Takes a row's events until it ends, and closes its stream.

        Raises:
            ServableError: The row failed.
        """
        try:
            await pour(stream, lambda event: self._take(index, event), self._room)
            self._open.discard(index)  # beams end with their stream
        finally:
            await stream.aclose()

    async def end(self) -> None:
        """Sends what is left, when all rows have ended."""
        longest = max(len(beam.token_ids) for beams in self._beams for beam in beams)
        while self._each_token and self._count + 1 < longest:
            await self._room.drained()
            self._count += 1
            self._send(self._beams_after(self._count), False)
        self._send(self._beams_after(longest), True)

    def _take(self, index: int, event: OutputEvent) -> bool:
        check_event(event)
        row, beam = self._request.rows[index], self._beams[index][event.index]
        is_over = self._note(row, beam, event) or (event.finish_reason is not None and self._request.beam_width == 1)
        if is_over:
            self._open.discard(index)
        while self._each_token and self._open and self._count < self._shortest() and not self._room.is_full:
            self._count += 1
            self._send(self._beams_after(self._count), False)
        return is_over

    def _beams_after(self, count: int) -> list[list[Beam]]:
        """Returns every row's beams as they were after so many tokens."""
        return [[beam.cut(count) for beam in beams] for beams in self._beams]

    def _shortest(self) -> int:
        """Tokens of the open row that has the fewest."""
        return min(len(self._beams[index][0].token_ids) for index in self._open)

    def _note(self, row: FtRow, beam: Beam, event: OutputEvent) -> bool:
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
