"""The pieces of chat answers: what an event adds to a choice, tool calls and log-probabilities included.

`ChatPieces` reads one choice for streams and whole replies alike. `ChatWriter` makes a stream's chunks. Called by
`chat.py` alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec
from msgspec import UNSET, UnsetType

from millpond.api.request import OutputEvent
from millpond.inference.text import Tokenizer
from millpond.serve.http.openai.calls import StreamUsage
from millpond.serve.http.openai.logprobs import ChatLogprobs, chat_logprobs
from millpond.serve.http.openai.replies import (
    ChatChunk,
    ChatChunkChoice,
    ChatDelta,
    FunctionCall,
    ToolCall,
    Usage,
)
from millpond.serve.http.openai.tool_forms import CallPiece, Piece
from millpond.serve.http.openai.tools import ToolUse
from millpond.serve.http.stream import frame
from millpond.serve.http.text_template import TextTemplate


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """What the choices of a call show.

    Attributes:
        role: Whose message it is.
        echo: Text that comes first.
        num_top: Alternatives a token; None shows no numbers.
        make_id: Gives every tool call an id of its own.
    """

    tokenizer: Tokenizer
    tools: ToolUse
    role: str
    echo: str
    num_top: int | None
    make_id: Callable[[], str]


class ChatPieces:
    """One choice, piece by piece."""

    def __init__(self, options: ChatOptions) -> None:
        self._options = options
        self._reader = options.tools.reader()
        self._has_calls = False
        self._echo = options.echo

    def add(self, event: OutputEvent) -> tuple[str, list[ToolCall], str | None]:
        """Returns the text, the tool calls and the finish reason that an event adds."""
        text, calls = event.text, []
        if self._reader is not None:
            pieces = self._reader.push(event.text)
            if event.finish_reason is not None:
                pieces += self._reader.flush()
            text = "".join(piece for piece in pieces if isinstance(piece, str))
            calls = self._calls(pieces)
        echo, self._echo = self._echo, ""
        finish_reason: str | None = event.finish_reason
        if finish_reason == "stop" and self._has_calls:
            finish_reason = "tool_calls"
        return echo + text, calls, finish_reason

    def numbers(self, event: OutputEvent) -> ChatLogprobs | None:
        """Returns the log-probabilities of an event's tokens, if they are wanted."""
        if self._options.num_top is None or event.logprobs is None:
            return None
        return chat_logprobs(event.logprobs, self._options.tokenizer, self._options.num_top)

    def _calls(self, pieces: list[Piece]) -> list[ToolCall]:
        calls: list[ToolCall] = []
        for piece in pieces:
            if isinstance(piece, CallPiece):
                self._has_calls = True
                calls.append(self._call(piece))
        return calls

    def _call(self, piece: CallPiece) -> ToolCall:
        if piece.name is None:
            return ToolCall(FunctionCall(arguments=piece.arguments), piece.call)
        return ToolCall(FunctionCall(piece.name, piece.arguments), piece.call, self._options.make_id(), "function")


class ChatWriter:
    """The chunks of a stream.

    Args:
        options: What the choices show.
        n: How many there are.
        chunk: A chunk without choices.
        usage: When to show it.
    """

    def __init__(self, options: ChatOptions, n: int, *, chunk: ChatChunk, usage: StreamUsage) -> None:
        self._options = options
        self._pieces = [ChatPieces(options) for _ in range(n)]
        self._has_begun = [False] * n
        self._chunk = chunk
        self._usage = usage
        self._has_plain = options.num_top is None and usage.is_constant and options.tools.reader() is None
        self._plain: dict[int, TextTemplate] = {}  # of choices that have begun

    def on_event(self, prompt: int, event: OutputEvent) -> bytes:
        """Returns the frames an event gives, if any."""
        plain = self._plain.get(event.index)
        if plain is not None and event.finish_reason is None:
            return plain.fill(event.text) if event.text else b""
        return self._any_frames(event)

    def _any_frames(self, event: OutputEvent) -> bytes:
        pieces = self._pieces[event.index]
        text, calls, finish_reason = pieces.add(event)
        numbers = pieces.numbers(event)
        data = b"" if self._has_begun[event.index] else self._begin(event.index)
        if not (text or calls or numbers or finish_reason):
            return data
        choice = ChatChunkChoice(
            index=event.index,
            delta=ChatDelta(content=text if text or numbers else UNSET, tool_calls=calls or UNSET),
            logprobs=numbers,
            finish_reason=finish_reason,
            stop_reason=event.stop_reason if finish_reason else UNSET,
        )
        return data + self._frame([choice], self._usage.of_chunk())

    def at_end(self) -> bytes:
        """Returns the usage chunk, if it is wanted."""
        return self._frame([], self._usage.total()) if self._usage.has_last_chunk else b""

    def _begin(self, index: int) -> bytes:
        self._has_begun[index] = True
        if self._has_plain:
            self._plain[index] = TextTemplate(lambda text: self._text_frame(index, text))
        choice = ChatChunkChoice(index, ChatDelta(role=self._options.role, content=""))
        return self._frame([choice], self._usage.of_chunk())

    def _text_frame(self, index: int, text: str) -> bytes:
        return self._frame([ChatChunkChoice(index, ChatDelta(content=text))], self._usage.of_chunk())

    def _frame(self, choices: list[ChatChunkChoice], usage: Usage | UnsetType | None) -> bytes:
        made = self._chunk
        chunk = ChatChunk(made.id, made.object, made.created, made.model, choices, usage, made.system_fingerprint)
        return frame(msgspec.json.encode(chunk))
