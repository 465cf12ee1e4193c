"""The pieces of completions: what an event adds to a choice, echo and log-probabilities included.

A whole reply is one piece per choice, a stream is many; both are made by `ChoicePieces`, so that they cannot differ.
Called by `completions.py` alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from msgspec import UNSET, UnsetType

from millpond.api.request import OutputEvent, TokenLogprob
from millpond.inference.text import Tokenizer
from millpond.serve.http.openai.calls import StreamUsage
from millpond.serve.http.openai.logprobs import CompletionLogprobs, CompletionLogprobsBuilder, prompt_logprobs
from millpond.serve.http.openai.replies import CompletionChoice, CompletionReply, PromptLogprobs, Usage
from millpond.serve.http.stream import frame
from millpond.serve.http.text_template import TextTemplate


@dataclass(frozen=True, slots=True)
class PieceOptions:
    """What the choices of a call show.

    Attributes:
        echo: The prompt comes first.
        logprobs: Alternatives a token; None shows no numbers.
        prompt_logprobs: vLLM's extra field is shown.
        has_output: False drops what was generated (`max_tokens` 0).
    """

    tokenizer: Tokenizer
    echo: bool
    logprobs: int | None
    prompt_logprobs: bool
    has_output: bool


class Prompt(msgspec.Struct, frozen=True):
    """A prompt as tokens, and as the text that echo shows."""

    token_ids: list[int]
    text: str


class ChoicePieces:
    """One choice, piece by piece."""

    def __init__(self, options: PieceOptions, prompt: Prompt, index: int) -> None:
        self._options = options
        self._prompt = prompt
        self._index = index
        self._is_first = True
        offset = 0 if options.echo else len(prompt.text)
        self._builder = CompletionLogprobsBuilder(options.tokenizer, options.logprobs or 0, offset)

    def add(self, event: OutputEvent, of_prompt: list[TokenLogprob | None] | None) -> CompletionChoice | None:
        """Returns what an event adds, or None when that is nothing a client could see.

        Args:
            event: The event.
            of_prompt: The prompt's log-probabilities, if they were asked for.
        """
        options = self._options
        text, token_ids, tokens = "", [], []
        if self._is_first and options.echo:
            text = self._prompt.text
            if of_prompt is not None:
                token_ids, tokens = list(self._prompt.token_ids), list(of_prompt)
        if options.has_output:
            text += event.text
            if event.logprobs is not None:
                token_ids += event.token_ids
                tokens += event.logprobs
        if not (text or token_ids or event.finish_reason):
            return None
        choice = CompletionChoice(
            index=self._index,
            text=text,
            logprobs=self._numbers(token_ids, tokens),
            finish_reason=event.finish_reason if options.has_output or event.finish_reason is None else "length",
            stop_reason=event.stop_reason,
            prompt_logprobs=self._prompt_numbers(of_prompt),
        )
        self._is_first = False
        return choice

    def _numbers(self, token_ids: list[int], tokens: list[TokenLogprob | None]) -> CompletionLogprobs | None:
        return None if self._options.logprobs is None else self._builder.build(token_ids, tokens)

    def _prompt_numbers(self, of_prompt: list[TokenLogprob | None] | None) -> PromptLogprobs | UnsetType:
        if not (self._is_first and self._options.prompt_logprobs and of_prompt is not None):
            return UNSET
        return prompt_logprobs(of_prompt, self._options.tokenizer)


class CompletionWriter:
    """The chunks of a stream.

    Args:
        options: What the choices show.
        prompts: The prompts of the call.
        n: Choices a prompt.
        reply: A chunk without choices.
        usage: When to show it.
    """

    def __init__(
        self, options: PieceOptions, prompts: list[Prompt], n: int, *, reply: CompletionReply, usage: StreamUsage
    ) -> None:
        self._pieces = [
            [ChoicePieces(options, prompt, p * n + k) for k in range(n)] for p, prompt in enumerate(prompts)
        ]
        self._of_prompt: list[list[TokenLogprob | None] | None] = [None] * len(prompts)
        self._reply = reply
        self._usage = usage
        self._has_plain = options.has_output and options.logprobs is None and usage.is_constant
        self._plain: dict[tuple[int, int], TextTemplate] = {}  # of choices that have begun

    def on_event(self, prompt: int, event: OutputEvent) -> bytes:
        """Returns the frame an event gives, if any."""
        plain = self._plain.get((prompt, event.index))
        if plain is not None and event.finish_reason is None and event.logprobs is None:
            return plain.fill(event.text) if event.text else b""
        return self._any_frame(prompt, event)

    def _any_frame(self, prompt: int, event: OutputEvent) -> bytes:
        if event.prompt_logprobs is not None:
            self._of_prompt[prompt] = event.prompt_logprobs
        choice = self._pieces[prompt][event.index].add(event, self._of_prompt[prompt])
        if choice is None:
            return b""
        if self._has_plain:
            self._plain[prompt, event.index] = TextTemplate(lambda text: self._text_frame(choice.index, text))
        return self._frame([choice], self._usage.of_chunk())

    def _text_frame(self, index: int, text: str) -> bytes:
        return self._frame([CompletionChoice(index, text)], self._usage.of_chunk())

    def at_end(self) -> bytes:
        """Returns the usage chunk, if it is wanted."""
        return self._frame([], self._usage.total()) if self._usage.has_last_chunk else b""

    def _frame(self, choices: list[CompletionChoice], usage: Usage | UnsetType | None) -> bytes:
        reply = self._reply
        chunk = CompletionReply(
            reply.id, reply.object, reply.created, reply.model, choices, usage, reply.system_fingerprint
        )
        return frame(msgspec.json.encode(chunk))
