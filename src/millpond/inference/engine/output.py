"""From token ids to text: what a request's sequences said since last time, as `OutputEvent`s.

Holds one incremental detokeniser and one stop checker a sequence. Used in process by `LLM` and in the gateway by the
client; the engine itself never sees text. When a stop string ends a sequence, the caller must cancel it in the engine.
No torch.
"""

from __future__ import annotations

import msgspec

from millpond.api.request import ErrorInfo, FinishReason, OutputEvent, Request, SamplingParams, TokenLogprob
from millpond.inference.engine.messages import SequenceOutput
from millpond.inference.text import IncrementalDetokenizer, StopChecker, Tokenizer


class SequenceText:
    """Turns one sequence's tokens into text deltas and finds its stop strings."""

    __slots__ = ("_checker", "_detokenizer", "_keeps_stop_token", "_min_tokens", "_num_tokens")

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams) -> None:
        self._detokenizer = IncrementalDetokenizer(tokenizer, params.skip_special_tokens)
        self._checker = StopChecker(params.stop, params.include_stop_str_in_output) if params.stop else None
        self._min_tokens = params.min_tokens
        self._keeps_stop_token = params.include_stop_str_in_output
        self._num_tokens = 0

    def push(self, token_ids: list[int], finish_reason: FinishReason | None) -> tuple[str, int, str | None]:
        """Takes new tokens; returns the text to emit, how many of the tokens count, and the stop string that matched.

        Tokens are taken one by one only while a stop string could match, so that those after the match do not count.
        """
        if self._checker is None:
            if finish_reason is None:
                self._num_tokens += len(token_ids)
                return self._detokenizer.push(token_ids), len(token_ids), None
            return self._plain(token_ids, finish_reason), len(token_ids), None
        emitted = ""
        for count, token_id in enumerate(token_ids, 1):
            is_last = count == len(token_ids)
            text = self._plain([token_id], finish_reason if is_last else None)
            if self._num_tokens <= self._min_tokens:
                emitted += text  # too early to stop: vLLM does not look at this text either
                continue
            emit, matched = self._checker.push(text)
            emitted += emit
            if matched is not None:
                return emitted, count, matched
        if finish_reason is not None:
            emitted += self._checker.flush()
        return emitted, len(token_ids), None

    def _plain(self, token_ids: list[int], finish_reason: FinishReason | None) -> str:
        self._num_tokens += len(token_ids)
        if finish_reason == "stop" and not self._keeps_stop_token:
            token_ids = token_ids[:-1]  # the token that ended it is no part of the text
        text = self._detokenizer.push(token_ids)
        return text if finish_reason is None else text + self._detokenizer.flush()


class RequestText:
    """The sequences of one request, by index."""

    __slots__ = ("_texts", "request_id")

    def __init__(self, request: Request, tokenizer: Tokenizer) -> None:
        self.request_id = request.request_id
        self._texts = {index: SequenceText(tokenizer, request.params) for index in range(request.params.n)}

    @property
    def is_finished(self) -> bool:
        """True when no sequence is open any more."""
        return not self._texts

    @property
    def num_open(self) -> int:
        """How many sequences have not ended."""
        return len(self._texts)

    @property
    def open_indices(self) -> tuple[int, ...]:
        """The sequences that have not ended."""
        return tuple(self._texts)

    def push(self, output: SequenceOutput) -> OutputEvent | None:
        """Returns the event for an output, or None for a sequence that ended here before the engine knew.

        An event whose `stop_reason` is a string was ended by it here: the engine still runs the sequence.
        """
        text = self._texts.get(output.index)
        if text is None:
            return None
        delta, count, matched = text.push(output.token_ids, output.finish_reason)
        if matched is None:
            if output.finish_reason is not None:
                del self._texts[output.index]
            # By position: this is run for every token of every stream.
            return OutputEvent(
                self.request_id,
                output.index,
                delta,
                output.token_ids,
                output.logprobs,
                output.prompt_logprobs,
                output.finish_reason,
                output.stop_reason,
                output.num_cached_tokens,
                output.error,
                output.queue_s,
            )
        del self._texts[output.index]
        return OutputEvent(
            request_id=self.request_id,
            index=output.index,
            text=delta,
            token_ids=output.token_ids[:count],
            logprobs=None if output.logprobs is None else output.logprobs[:count],
            prompt_logprobs=output.prompt_logprobs,
            finish_reason="stop",
            stop_reason=matched,
            num_cached_tokens=output.num_cached_tokens,
            queue_s=output.queue_s,
        )

    def fail(self, finish_reason: FinishReason, error: ErrorInfo) -> list[OutputEvent]:
        """Ends every open sequence with an error; text held back is given out."""
        return [
            event
            for index in self.open_indices
            if (event := self.push(SequenceOutput(self.request_id, index, [], finish_reason, error=error))) is not None
        ]


class EventBuffer:
    """One sequence's events that nobody has taken yet, kept as one.

    Its size is bounded by the sequence's output, however many steps pass before it is read.
    """

    def __init__(self) -> None:
        self._first: OutputEvent | None = None
        self._last: OutputEvent | None = None
        self._clear()

    def _clear(self) -> None:
        self._text: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprob] | None = None
        self._prompt_logprobs: list[TokenLogprob | None] | None = None
        self._queue_s: float | None = None

    def add(self, event: OutputEvent) -> None:
        """Takes an event."""
        if self._first is None:
            self._first = event
            return
        if self._last is None:
            self._extend(self._first)
        self._extend(event)
        self._last = event

    def take(self) -> OutputEvent | None:
        """Returns all that was added since the last call as one event, or None."""
        event, last = self._first, self._last
        if last is not None:
            event = msgspec.structs.replace(
                last,
                text="".join(self._text),
                token_ids=self._token_ids,
                logprobs=self._logprobs,
                prompt_logprobs=self._prompt_logprobs,
                queue_s=self._queue_s,
            )
            self._clear()
        self._first = self._last = None
        return event

    def _extend(self, event: OutputEvent) -> None:
        self._text.append(event.text)
        self._token_ids += event.token_ids
        if event.logprobs is not None:
            self._logprobs = self._logprobs or []
            self._logprobs += event.logprobs
        if event.prompt_logprobs is not None:
            self._prompt_logprobs = event.prompt_logprobs
        if event.queue_s is not None:
            self._queue_s = event.queue_s
