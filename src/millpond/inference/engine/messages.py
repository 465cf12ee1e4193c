"""The wire between a gateway and its engine: message types and length-prefixed msgpack frames.

One `Commands` a step goes in, one `StepOutput` a step comes out. Knows bytes, not sockets: the engine process and the
client feed what they read to a `FrameReader` and write what `encode` returns. No torch.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator
from typing import Any

import msgspec

from millpond.api.request import EngineInfo, EngineStats, ErrorInfo, FinishReason, Request, TokenLogprob
from millpond.base.errors import EngineDeadError, MillpondError
from millpond.config.schema import EngineConfig

MAX_FRAME_BYTES = 1 << 30  # a length past this is a broken stream, not a message
_HEADER = struct.Struct("<I")
OUT_OF_MEMORY = "out_of_memory"


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """The first message to an engine: what to load.

    Attributes:
        config: What was asked for: `EngineConfig` by `dataclasses.asdict`.
        model_path: The directory or file that its model stands for.
        started_s: When the process was asked for, on the machine's monotonic clock.
    """

    config: dict[str, Any]
    model_path: str
    started_s: float


class Cancel(msgspec.Struct, frozen=True, array_like=True):
    """Stop a request, or one of its sequences when `index` is given."""

    request_id: str
    index: int | None = None


class Commands(msgspec.Struct, frozen=True, tag="commands"):
    """What the gateway wants since its last message. A cancel is about a request of an earlier message."""

    add: list[Request] = []
    cancel: list[Cancel] = []


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """How far loading is: `fraction` of `stage`."""

    stage: str
    fraction: float


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """Loading is done; requests are welcome."""

    info: EngineInfo


class LoadFailed(msgspec.Struct, frozen=True, tag="load_failed"):
    """Loading ended in an error; the process exits after it."""

    code: str
    message: str
    fix: str = ""
    param: str | None = None


class SequenceOutput(msgspec.Struct, array_like=True):
    """What one sequence got since the last message: token ids, not yet text.

    Mutable, because outputs that could not be sent yet are merged with the next step's.
    """

    request_id: str
    index: int
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    stop_reason: int | None = None
    num_cached_tokens: int = 0
    queue_s: float | None = None
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob | None] | None = None
    error: ErrorInfo | None = None

    def merge(self, later: SequenceOutput) -> None:
        """Appends a later output of the same sequence."""
        self.token_ids += later.token_ids
        if later.logprobs is not None:
            self.logprobs = [*(self.logprobs or ()), *later.logprobs]
        if later.prompt_logprobs is not None:
            self.prompt_logprobs = later.prompt_logprobs
        self.queue_s = later.queue_s if self.queue_s is None else self.queue_s
        self.num_cached_tokens = max(self.num_cached_tokens, later.num_cached_tokens)
        self.finish_reason = later.finish_reason
        self.stop_reason = later.stop_reason
        self.error = later.error


class StepOutput(msgspec.Struct, frozen=True, tag="step"):
    """Everything one step gave, for every sequence, and the engine's counters after it."""

    outputs: list[SequenceOutput]
    stats: EngineStats


ToEngine = Hello | Commands
FromEngine = Progress | Ready | LoadFailed | StepOutput


class FrameReader:
    """Cuts a byte stream into frames, however the reads fell."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yields every frame that is complete now.

        Raises:
            ConnectionError: The stream holds no frame; the connection cannot be used any more.
        """
        self._buffer += data
        while len(self._buffer) >= _HEADER.size:
            (length,) = _HEADER.unpack_from(self._buffer)
            if length > MAX_FRAME_BYTES:
                raise ConnectionError(f"a frame of {length} bytes was announced, the limit is {MAX_FRAME_BYTES}")
            end = _HEADER.size + length
            if len(self._buffer) < end:
                break
            frame = bytes(memoryview(self._buffer)[_HEADER.size : end])
            del self._buffer[:end]  # before the yield: the caller may stop after any frame
            yield frame


def encode(message: ToEngine | FromEngine) -> bytes:
    """Returns the message as one frame, header included."""
    payload = msgspec.msgpack.encode(message)
    return _HEADER.pack(len(payload)) + payload


def to_engine_decoder() -> msgspec.msgpack.Decoder[ToEngine]:
    """Returns a decoder for what a gateway sends."""
    return msgspec.msgpack.Decoder(ToEngine)


def from_engine_decoder() -> msgspec.msgpack.Decoder[FromEngine]:
    """Returns a decoder for what an engine sends."""
    return msgspec.msgpack.Decoder(FromEngine)


def hello(config: EngineConfig, model_path: str, started_s: float) -> Hello:
    """Returns the first message for an engine that shall run `config`."""
    return Hello(dataclasses.asdict(config), model_path, started_s)


def config_of(message: Hello) -> EngineConfig:
    """Returns the configuration a `Hello` carries."""
    return msgspec.convert(message.config, EngineConfig)


def describe_failure(error: BaseException) -> LoadFailed:
    """Returns the message that carries an error of loading to the gateway."""
    if isinstance(error, MillpondError):
        return LoadFailed(error.code, error.message, error.fix, error.param)
    if isinstance(error, MemoryError):
        return LoadFailed(OUT_OF_MEMORY, str(error) or "There is not enough memory to load the model.")
    return LoadFailed(EngineDeadError.code, f"The engine could not load the model: {type(error).__name__}: {error}.")


def failure_error(failure: LoadFailed) -> Exception:
    """Returns the same typed exception that `describe_failure` was given, ready to be raised."""
    if failure.code == OUT_OF_MEMORY:
        return MemoryError(failure.message)
    return typed_error(ErrorInfo(failure.code, failure.message), fix=failure.fix, param=failure.param)


def typed_error(info: ErrorInfo, *, fix: str = "", param: str | None = None) -> MillpondError:
    """Returns the exception whose class has the code of `info`."""
    for error_class in _all_errors(MillpondError):
        if error_class.code == info.code:
            error = error_class(info.message, fix=fix)
            error.param = param
            return error
    return MillpondError(info.message, fix=fix, param=param)


def _all_errors(base: type[MillpondError]) -> Iterator[type[MillpondError]]:
    yield base
    for error_class in base.__subclasses__():
        yield from _all_errors(error_class)
