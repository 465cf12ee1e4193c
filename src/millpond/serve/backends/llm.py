"""The back end `llm` (also `vllm` and `millpond`): our engine as a servable from text to text.

A folder whose version has a `model.json` is one engine process, which every protocol asks through the tensors of
`vllm_form`, or of `trtllm_form` where the configuration says so. The engine of `millpond serve MODEL` is the same kind
of servable over an engine that the OpenAI port uses too.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

from millpond.api.request import OutputEvent, Request
from millpond.config.schema import EngineConfig
from millpond.inference.engine.stream import OutputStream
from millpond.inference.sampling.grammar_guard import GrammarGuard
from millpond.serve.backends.engine_model import (
    Answer,
    EngineInstance,
    Reply,
    check_event,
    check_single_instance,
    engine_config,
    event_error,
    start_engine,
)
from millpond.serve.backends.llm_folder import read_arguments
from millpond.serve.backends.llm_form import Form, LlmRequest, Piece, Prompt, RowPieces
from millpond.serve.backends.trtllm_form import TrtLlmForm
from millpond.serve.backends.vllm_form import VllmForm
from millpond.serve.gateway import Engine
from millpond.serve.pouring import pour
from millpond.serve.servables.backend import ModelFolder
from millpond.serve.servables.config import InstanceGroup, ServableConfig
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.messages import InferRequest, InferResponse
from millpond.serve.servables.tensors import Tensor, TensorSpec
from millpond.serve.turns import Turns

NAMES = ("llm", "vllm", "millpond")
_LONG_TEXT = 4096  # characters; tokenising more would hold up the event loop


class LlmBackend:
    """See the module.

    Args:
        base: Settings of every engine that a model does not set itself.
    """

    name = "llm"

    def __init__(self, base: EngineConfig | None = None) -> None:
        self._base = base or EngineConfig()
        self._shared: dict[str, Engine] = {}

    def share(self, name: str, engine: Engine) -> ServableConfig:
        """Makes an engine that runs already the one behind servable `name`, and returns the servable's configuration.

        The engine is left running when the servable is removed.
        """
        self._shared[name] = engine
        return ServableConfig(name, "llm", (), ())

    async def complete(self, config: ServableConfig, folder: ModelFolder) -> ServableConfig:
        """Fills in the form's tensors and checks that the folder can be served."""
        check_single_instance(config)
        form = form_of(config)
        if config.name not in self._shared:
            await asyncio.to_thread(read_arguments, config, folder)
        switch = config.parameters.get("decoupled", "true").strip().lower()
        return replace(
            config,
            inputs=_completed(config, "input", config.inputs, form.inputs),
            outputs=_completed(config, "output", config.outputs, form.outputs),
            max_batch_size=0 if isinstance(form, VllmForm) else config.max_batch_size,
            decoupled=switch not in ("false", "off", "0"),
        )

    async def load(
        self, config: ServableConfig, folder: ModelFolder, group: InstanceGroup, number: int
    ) -> EngineInstance:
        """Starts the engine, or takes the one that is shared."""
        engine = self._shared.get(config.name)
        is_shared = engine is not None
        if engine is None:
            settings = await asyncio.to_thread(read_arguments, config, folder)
            engine = await start_engine(engine_config(self._base, settings, config.name), config.name)
        return EngineInstance(engine, LlmAnswers(engine, config, folder.version), folder.version, is_shared=is_shared)


def form_of(config: ServableConfig) -> Form:
    """Returns the tensors that a configuration wants.

    Raises:
        ServableError: It names a form that there is not.
    """
    named = config.parameters.get("form", "").strip().lower()
    has_max_tokens = any(spec.name == "max_tokens" for spec in config.inputs)
    if named in ("tensorrt_llm", "trtllm") or (not named and has_max_tokens):
        excludes = config.parameters.get("exclude_input_in_output", "false").strip().lower() == "true"
        return TrtLlmForm(has_batch=config.max_batch_size > 0, excludes_input=excludes)
    if named in ("", "vllm"):
        return VllmForm()
    raise ServableError(
        "invalid_argument", f"Model '{config.name}': there is no form {named}. Use vllm or tensorrt_llm."
    )


class LlmAnswers:
    """Answers requests of one model.

    Args:
        engine: Where prompts run.
        config: Complete.
        version: Of the servable.
    """

    def __init__(self, engine: Engine, config: ServableConfig, version: int) -> None:
        self._engine = engine
        self._form = form_of(config)
        self._name = config.name
        self._version = version
        self._is_decoupled = config.decoupled
        self._numbers = itertools.count()
        self._turns = Turns()
        self._grammars: GrammarGuard | None = None

    def __call__(self, requests: Sequence[InferRequest]) -> list[Answer]:
        """Returns an answer for each request."""
        return [functools.partial(self._answer, request) for request in requests]

    def close(self) -> None:
        """Ends the process that checks grammars."""
        if self._grammars is not None:
            self._grammars.close()

    async def _answer(self, request: InferRequest, reply: Reply) -> None:
        asked = self._form.read(request, self._engine.text.tokenizer)
        if asked.is_streamed and not self._is_decoupled:
            raise ServableError("invalid_argument", f"Model '{self._name}' is not decoupled and cannot stream.")
        token_ids = [await self._encode(prompt) for prompt in asked.prompts]
        streams: list[OutputStream] = []
        async with contextlib.AsyncExitStack() as stack:
            for ids, prompt in zip(token_ids, asked.prompts, strict=True):
                wire = Request(f"{request.request_id or 'llm'}-{next(self._numbers)}", ids, prompt.params)
                streams.append(cast(OutputStream, self._engine.generate(wire)))
                stack.push_async_callback(streams[-1].aclose)
            if asked.is_streamed:
                await self._stream(request, asked, len(token_ids[0]), streams[0], reply)
                return
            rows = await asyncio.gather(
                *(_whole(stream, prompt) for stream, prompt in zip(streams, asked.prompts, strict=True))
            )
            pieces_of = [RowPieces(len(ids), pieces) for ids, pieces in zip(token_ids, rows, strict=True)]
            reply.send(self._response(request, asked, pieces_of, is_last=True))

    async def _stream(
        self, request: InferRequest, asked: LlmRequest, num_prompt_tokens: int, stream: OutputStream, reply: Reply
    ) -> None:
        """Answers an event as a response, in the turn of the event loop in which it comes."""
        write = self._form.text_writer(asked)
        if write is not None and request.outputs is None and asked.prompts[0].params.n == 1:
            await pour(stream, self._text_sender(write, reply), reply)
            return
        choices = _Choices(asked.prompts[0])

        def take(event: OutputEvent) -> bool:
            choices.take(event)
            pieces = RowPieces(num_prompt_tokens, choices.pieces)
            reply.send(self._response(request, asked, [pieces], is_last=choices.are_finished))
            choices.next_response()
            return choices.are_finished

        await pour(stream, take, reply)

    def _text_sender(self, write: Callable[[str], dict[str, Tensor]], reply: Reply) -> Callable[[OutputEvent], bool]:
        """What most streams are: one text a token. Written out, because every token comes here."""
        name, version = self._name, self._version

        def take(event: OutputEvent) -> bool:
            if event.error is not None:
                raise event_error(event.error)
            is_last = event.finish_reason is not None
            reply.send(InferResponse(name, version, write(event.text), {}, is_last))
            return is_last

        return take

    async def _encode(self, prompt: Prompt) -> list[int]:
        """Checks what a prompt's grammar costs and returns its tokens."""
        grammar = prompt.params.grammar
        if grammar is not None:
            await asyncio.to_thread(self._guard().check, grammar)
        encode = functools.partial(self._engine.text.tokenizer.encode, prompt.text)
        return await (asyncio.to_thread(encode) if len(prompt.text) > _LONG_TEXT else self._turns.run(encode))

    def _guard(self) -> GrammarGuard:
        if self._grammars is None:
            info = self._engine.info
            self._grammars = GrammarGuard(
                self._engine.text.tokenizer, vocab_size=info.vocab_size, eos_token_ids=info.eos_token_ids
            )
        return self._grammars

    def _response(
        self, request: InferRequest, asked: LlmRequest, rows: Sequence[RowPieces], *, is_last: bool
    ) -> InferResponse:
        outputs = self._form.write(asked, rows, self._engine.text.tokenizer)
        if request.outputs is not None:
            outputs = {name: tensor for name, tensor in outputs.items() if name in request.outputs}
        return InferResponse(self._name, self._version, outputs, final=is_last)


class _Choices:
    """The choices of one prompt, and what they said since the last response."""

    def __init__(self, prompt: Prompt) -> None:
        self._keeps_logprobs = prompt.params.logprobs is not None
        self.pieces = [self._piece() for _ in range(prompt.params.n)]
        self._open = set(range(prompt.params.n))

    @property
    def are_finished(self) -> bool:
        return not self._open

    def take(self, event: OutputEvent) -> None:
        """Adds an event; raises `ServableError` when it says that the choice failed."""
        check_event(event)
        piece = self.pieces[event.index]
        piece.text += event.text
        piece.num_tokens += len(event.token_ids)
        if event.logprobs is not None and piece.logprobs is not None:
            piece.logprobs += event.logprobs
            piece.cumulative += sum(each.logprob for each in event.logprobs)
        if event.finish_reason is not None:
            piece.finish_reason = event.finish_reason
            self._open.discard(event.index)

    def next_response(self) -> None:
        """Starts over with empty pieces; what counts over the whole answer stays."""
        for index, piece in enumerate(self.pieces):
            fresh = self._piece()
            fresh.cumulative, fresh.finish_reason = piece.cumulative, piece.finish_reason
            self.pieces[index] = fresh

    def _piece(self) -> Piece:
        return Piece(logprobs=[] if self._keeps_logprobs else None)


async def _whole(stream: OutputStream, prompt: Prompt) -> list[Piece]:
    choices = _Choices(prompt)
    async for event in stream:
        choices.take(event)
    return choices.pieces


def _completed(
    config: ServableConfig, kind: str, given: Sequence[TensorSpec], known: Sequence[TensorSpec]
) -> tuple[TensorSpec, ...]:
    """What the configuration names as it names it, and then the rest of the form."""
    expected = {spec.name: spec for spec in known}
    for spec in given:
        if spec.name not in expected:
            raise ServableError(
                "invalid_argument",
                f"Model '{config.name}': the {kind} {spec.name} is not one of {', '.join(expected)}.",
            )
        if spec.datatype != expected[spec.name].datatype:
            raise ServableError(
                "invalid_argument",
                f"Model '{config.name}': the {kind} {spec.name} is {spec.datatype}; "
                f"it must be {expected[spec.name].datatype}.",
            )
    names = {spec.name for spec in given}
    return (*given, *(spec for spec in known if spec.name not in names))
