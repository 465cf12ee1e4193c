"""From a router's request to the engine's: the same parameters give the same tokens as /generate does.

The router has checked ranges; what is out of range all the same is refused by the engine's admission. Adapters, images
and watermarks are refused here.
"""

from __future__ import annotations

from millpond.api.request import GrammarSpec, Request, SamplingParams
from millpond.inference.text import Tokenizer
from millpond.serve.grpc.tgi_shard.errors import ShardError
from millpond.serve.http.tgi.checking import engine_seed
from millpond.serve.proto import generate_pb2 as pb


def is_sampled(asked: pb.NextTokenChooserParameters) -> bool:
    """Whether TGI samples with these parameters; proto's zero is a value nobody gave."""
    return (
        asked.do_sample
        or asked.temperature not in (0.0, 1.0)
        or asked.top_k > 0
        or 0.0 < asked.top_p < 1.0
        or 0.0 < asked.typical_p < 1.0
    )


def make_request(asked: pb.Request, tokenizer: Tokenizer, *, name: str, deadline_s: float) -> Request:
    """Returns the engine's request.

    Raises:
        ShardError: It asks for what there is not.
        RequestError: Its text is no text.
    """
    if asked.adapter_id:
        raise ShardError("invalid", "This shard serves one model without adapters; adapter_id must not be set.")
    if asked.parameters.watermark:
        raise ShardError("invalid", "This shard does not mark its text; watermark must not be set.")
    if asked.stopping_parameters.max_new_tokens == 0:
        raise ShardError("invalid", "max_new_tokens must be strictly positive.")
    token_ids = tokenizer.encode(_text(asked), asked.add_special_tokens)
    if asked.truncate:
        token_ids = token_ids[-asked.truncate :]
    return Request(name, token_ids, _params(asked), deadline_s=deadline_s)


def _text(asked: pb.Request) -> str:
    if not asked.input_chunks.chunks:
        return asked.inputs
    if any(chunk.WhichOneof("chunk") != "text" for chunk in asked.input_chunks.chunks):
        raise ShardError("invalid", "This shard reads text; input_chunks must hold no images.")
    return "".join(chunk.text for chunk in asked.input_chunks.chunks)


def _params(asked: pb.Request) -> SamplingParams:
    chosen, stopping = asked.parameters, asked.stopping_parameters
    sampled = is_sampled(chosen)
    stop = tuple(stopping.stop_sequences)
    return SamplingParams(
        temperature=(_number(chosen.temperature) or 1.0) if sampled else 0.0,
        top_k=chosen.top_k,
        top_p=_number(chosen.top_p) or 1.0,
        typical_p=_number(chosen.typical_p) or 1.0,
        repetition_penalty=_number(chosen.repetition_penalty) or 1.0,
        frequency_penalty=_number(chosen.frequency_penalty),
        seed=engine_seed(chosen.seed) if sampled else None,
        max_tokens=stopping.max_new_tokens,
        stop=stop,
        include_stop_str_in_output=bool(stop),
        ignore_eos=stopping.ignore_eos_token,
        logprobs=asked.top_n_tokens,
        prompt_logprobs=0 if asked.prefill_logprobs else None,
        grammar=_grammar(chosen),
    )


def _number(value: float) -> float:
    """The decimal a 32-bit float stands for: what the router's client wrote, and so what /generate would take."""
    return float(f"{value:.7g}")


def _grammar(chosen: pb.NextTokenChooserParameters) -> GrammarSpec | None:
    if chosen.grammar_type == pb.GRAMMAR_TYPE_NONE or not chosen.grammar:
        return None
    return GrammarSpec("json_schema" if chosen.grammar_type == pb.GRAMMAR_TYPE_JSON else "regex", chosen.grammar)
