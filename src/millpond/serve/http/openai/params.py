"""From request fields to `SamplingParams` and `GrammarSpec`.

Defaults of the API that differ between the endpoints are arguments; everything else is decided here once. Ranges were
checked while decoding; what depends on the model is checked at the engine's admission.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from millpond.api.request import GrammarSpec, SamplingParams
from millpond.serve.http.errors import ApiError, invalid
from millpond.serve.http.openai.fields import GenerationFields, ResponseFormat, StructuredOutputs


def sampling_params(
    body: GenerationFields,
    defaults: SamplingParams,
    *,
    n: int,
    max_tokens: int | None,
    logprobs: int | None,
    prompt_logprobs: int | None,
    grammar: GrammarSpec | None,
) -> SamplingParams:
    """Returns the engine's parameters for a request; `defaults` are the model's own."""
    return SamplingParams(
        n=n,
        temperature=_or(body.temperature, defaults.temperature),
        top_k=max(0, _or(body.top_k, defaults.top_k)),
        top_p=_or(body.top_p, defaults.top_p),
        min_p=_or(body.min_p, defaults.min_p),
        repetition_penalty=_or(body.repetition_penalty, defaults.repetition_penalty),
        presence_penalty=_or(body.presence_penalty, defaults.presence_penalty),
        frequency_penalty=_or(body.frequency_penalty, defaults.frequency_penalty),
        logit_bias=_logit_bias(body.logit_bias),
        seed=body.seed,
        max_tokens=max_tokens,
        min_tokens=body.min_tokens or 0,
        stop=_stop(body.stop),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        include_stop_str_in_output=bool(body.include_stop_str_in_output),
        ignore_eos=bool(body.ignore_eos),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        skip_special_tokens=body.skip_special_tokens is not False,
        grammar=grammar,
    )


def _or(asked: float | None, default: Any) -> Any:
    return default if asked is None else asked


def _stop(stop: str | list[str] | None) -> tuple[str, ...]:
    if stop is None:
        return ()
    return (stop,) if isinstance(stop, str) else tuple(stop)


def _logit_bias(bias: dict[str, float] | None) -> dict[int, float] | None:
    if not bias:
        return None
    for key in bias:
        if not (key.isascii() and key.isdecimal() and len(key) < 10):
            raise invalid(f"logit_bias has the key {key[:40]!a}; keys are token ids.", param="logit_bias")
    return {int(key): value for key, value in bias.items()}


@dataclass(frozen=True, slots=True)
class Constraint:
    """A grammar, and the field of the request that asked for it."""

    param: str
    grammar: GrammarSpec


def constraint_of(body: GenerationFields) -> Constraint | None:
    """Returns what a request demands of its text, in whichever of the three ways it says so.

    Raises:
        ApiError: It says so in more than one way, or not clearly.
    """
    ways = {
        "response_format": _from_response_format(body.response_format),
        "structured_outputs": _from_structured(body.structured_outputs, "structured_outputs"),
        "guided_*": _from_structured(_guided(body), "guided_*"),
    }
    given = [Constraint(param, grammar) for param, grammar in ways.items() if grammar is not None]
    if len(given) > 1:
        raise invalid(f"{given[0].param} and {given[1].param} are both given; give one.", param=given[1].param)
    return given[0] if given else None


def schema_grammar(schema: Any) -> GrammarSpec:
    """Returns the constraint that the text is JSON of this schema. Key order is kept: it is the order of the output."""
    return GrammarSpec("json_schema", json.dumps(schema, ensure_ascii=False, separators=(",", ":")))


def _from_response_format(form: ResponseFormat | None) -> GrammarSpec | None:
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return GrammarSpec("json_object")
    if form.json_schema is None or form.json_schema.schema is None:
        raise invalid(
            "response_format of type json_schema needs json_schema.schema.", param="response_format.json_schema.schema"
        )
    return schema_grammar(form.json_schema.schema)


def _guided(body: GenerationFields) -> StructuredOutputs | None:
    guided = StructuredOutputs(
        json=body.guided_json, regex=body.guided_regex, choice=body.guided_choice, grammar=body.guided_grammar
    )
    return None if guided == StructuredOutputs() else guided


def _from_structured(asked: StructuredOutputs | None, param: str) -> GrammarSpec | None:
    if asked is None:
        return None
    specs: list[GrammarSpec] = []
    if asked.json is not None:
        specs.append(schema_grammar(_schema_of(asked.json, param)))
    if asked.regex is not None:
        specs.append(GrammarSpec("regex", asked.regex))
    if asked.choice is not None:
        specs.append(GrammarSpec("choice", json.dumps(asked.choice, ensure_ascii=False)))
    if asked.grammar is not None:
        specs.append(GrammarSpec("lark", asked.grammar))
    if asked.json_object:
        specs.append(GrammarSpec("json_object"))
    if len(specs) != 1:
        raise invalid(f"{param} needs exactly one of json, regex, choice, grammar and json_object.", param=param)
    return specs[0]


def _schema_of(schema: dict[str, Any] | str, param: str) -> Any:
    if isinstance(schema, dict):
        return schema
    try:
        return json.loads(schema)
    except (ValueError, RecursionError):
        raise _not_a_schema(param) from None


def _not_a_schema(param: str) -> ApiError:
    return invalid(f"The JSON schema in {param} is text that is not valid JSON.", param=param)
