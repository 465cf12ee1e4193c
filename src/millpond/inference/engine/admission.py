"""Admission: everything that can be known to be wrong with a request, said before any work starts.

Called by the gateway's client and by the in-process `LLM` with the same rules. Knows the engine only through its
`EngineInfo`. No torch.
"""

from __future__ import annotations

import msgspec

from millpond.api.request import EngineInfo, Request, SamplingParams
from millpond.api.validate import check_sampling
from millpond.base.errors import ContextLengthError, RequestError

MAX_BEAM_STOPS = 16
_NOT_IN_BEAM_SEARCH = (
    "stop",
    "min_tokens",
    "prompt_logprobs",
    "logit_bias",
    "bad_words_ids",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)


def check_request(request: Request, info: EngineInfo) -> Request:
    """Checks a request against an engine and returns it with `max_tokens` filled in.

    Raises:
        RequestError: A parameter is out of range, the prompt is empty or a token is not in the vocabulary.
        ContextLengthError: Prompt and output do not fit the context, or not the KV cache.
    """
    check_sampling(request.params, info.vocab_size)
    prompt_len = len(request.prompt_token_ids)
    if prompt_len == 0:
        raise RequestError("The prompt holds no tokens.", fix="Send at least one token.", param="prompt")
    _check_token_ids(request.prompt_token_ids, info.vocab_size)
    if request.deadline_s is not None and not request.deadline_s > 0:
        raise RequestError(f"The deadline is {request.deadline_s} s.", fix="Give one above 0.", param="deadline_s")
    _check_places(max(request.params.n, request.params.beam_width), info)
    if request.params.beam_width > 1:
        _check_beam_search(request.params)
    # The last token of the output is sampled and never computed, so it needs no place in the cache.
    longest = min(info.max_model_len, info.num_blocks * info.block_size + 1)
    room, max_tokens = longest - prompt_len, request.params.max_tokens
    if room < (1 if max_tokens is None else min(1, max_tokens)):
        raise ContextLengthError(
            f"The prompt has {prompt_len} tokens and the context holds {longest}, output included.",
            fix="Shorten the prompt.",
            param="prompt",
        )
    if max_tokens is None:
        params = msgspec.structs.replace(request.params, max_tokens=room)
        return msgspec.structs.replace(request, params=params)
    if max_tokens > room:
        raise ContextLengthError(
            f"The prompt has {prompt_len} tokens and {max_tokens} are asked for; the context holds {longest}.",
            fix=f"Shorten the prompt or ask for {room} tokens at most.",
            param="max_tokens",
        )
    return request


def _check_places(num_sequences: int, info: EngineInfo) -> None:
    places = info.max_sequences + info.max_queue
    if num_sequences > places:
        raise RequestError(
            f"{num_sequences} sequences were asked for and the engine takes {places} at most.",
            fix="Ask for fewer, or raise scheduler.max_queue.",
            param="n",
        )


def _check_beam_search(params: SamplingParams) -> None:
    """What beam search would not do must not be dropped without a word."""
    for name in _NOT_IN_BEAM_SEARCH:
        if getattr(params, name) != getattr(SamplingParams(), name):
            raise RequestError(
                f"Beam search does not take {name}.", fix="Leave it out, or use beam_width 1.", param=name
            )
    if len(params.stop_token_ids) > MAX_BEAM_STOPS:  # a round looks at beam_width times as many candidates
        raise RequestError(
            f"Beam search takes {MAX_BEAM_STOPS} stop_token_ids at most, {len(params.stop_token_ids)} were given.",
            fix="Give fewer, or use beam_width 1.",
            param="stop_token_ids",
        )


def _check_token_ids(token_ids: list[int], vocab_size: int) -> None:
    lowest, highest = min(token_ids), max(token_ids)
    if lowest < 0 or highest >= vocab_size:
        wrong = lowest if lowest < 0 else highest
        raise RequestError(
            f"Token id {wrong} is not in the vocabulary of {vocab_size}.",
            fix="Encode the prompt with this model's tokenizer.",
            param="prompt",
        )
