"""TGI's validation: its ranges, in its order, with its texts; out comes what the engine understands.

Knows neither HTTP nor streams. Grammars are only read here; `work.py` has them compiled. What TGI has and the engine
has not (watermarks, adapters) is refused, because leaving it out would give another answer without a word.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from typing import Any

from millpond.api.request import GrammarSpec, SamplingParams
from millpond.serve.http.tgi.errors import TgiError, validation
from millpond.serve.http.tgi.fields import Grammar, Parameters
from millpond.serve.http.tgi.settings import Limits, TgiSettings

_U64 = 2**64
_LONGEST_SHOWN = 200


@dataclass(frozen=True, slots=True)
class Choice:
    """How to choose tokens, checked.

    Attributes:
        params: The engine's parameters; `max_tokens` and `seed` are set later.
        seeds: One for each of best_of sequences.
        is_sampled: False for greedy decoding, where the seed means nothing.
    """

    params: SamplingParams
    seeds: tuple[int, ...]
    is_sampled: bool

    def shown_seed(self, number: int) -> int | None:
        """Returns the seed that gives sequence `number` again, if it has one."""
        return self.seeds[number] if self.is_sampled else None


def make_choice(asked: Parameters, settings: TgiSettings) -> Choice:
    """Checks parameters.

    Raises:
        TgiError: One is out of its range, or cannot be done.
    """
    best_of = _best_of(asked, settings)
    _check_ranges(asked, settings)
    _check_offered(asked)
    is_sampled = _is_sampled(asked)
    seeds = tuple(secrets.randbits(64) for _ in range(best_of)) if asked.seed is None else (asked.seed,)
    stop = tuple(asked.stop)
    params = SamplingParams(
        temperature=(1.0 if asked.temperature is None else asked.temperature) if is_sampled else 0.0,
        top_k=asked.top_k or 0,
        top_p=1.0 if asked.top_p is None else asked.top_p,
        typical_p=1.0 if asked.typical_p is None else asked.typical_p,
        repetition_penalty=1.0 if asked.repetition_penalty is None else asked.repetition_penalty,
        frequency_penalty=asked.frequency_penalty or 0.0,
        stop=stop,
        include_stop_str_in_output=bool(stop),  # TGI's text ends with the stop sequence
        logprobs=asked.top_n_tokens or 0,
        prompt_logprobs=0 if asked.decoder_input_details else None,
        grammar=None if asked.grammar is None else grammar_spec(asked.grammar, settings),
    )
    return Choice(params, seeds, is_sampled)


def engine_seed(seed: int) -> int:
    """Returns a seed of 64 bits without a sign as the engine takes it."""
    return seed - _U64 if seed >= _U64 // 2 else seed


def check_streaming(asked: Parameters) -> None:
    """Raises what only streams refuse."""
    if asked.best_of not in (None, 1):
        raise validation("`best_of` != 1 is not supported when streaming tokens")
    if asked.decoder_input_details:
        raise validation("`decoder_input_details` == true is not supported when streaming tokens")


def check_truncate(asked: Parameters, limits: Limits) -> None:
    """Raises if the prompt would be cut to a length that makes no sense."""
    longest = limits.max_input_tokens
    if asked.truncate is not None and not 0 < asked.truncate <= longest:
        given = _show(asked.truncate)
        raise validation(f"`truncate` must be strictly positive and less than {longest}. Given: {given}")


def check_lengths(num_tokens: int, max_new_tokens: int | None, limits: Limits) -> int:
    """Returns how many tokens may be generated.

    Raises:
        TgiError: Prompt and output do not fit.
    """
    most = limits.max_total_tokens
    wanted = max(0, most - num_tokens) if max_new_tokens is None else max_new_tokens
    if num_tokens + wanted > most:
        raise validation(
            f"`inputs` tokens + `max_new_tokens` must be <= {most}. "
            f"Given: {num_tokens} `inputs` tokens and {wanted} `max_new_tokens`"
        )
    if num_tokens > limits.max_input_tokens:
        raise validation(f"`inputs` must have less than {limits.max_input_tokens} tokens. Given: {num_tokens}")
    return wanted


def grammar_spec(grammar: Grammar, settings: TgiSettings) -> GrammarSpec:
    """Returns the engine's form of a grammar.

    Raises:
        TgiError: It is not of the form its type says, or grammars are switched off.
    """
    if not settings.has_grammar:
        raise validation("grammar is not supported")
    value = grammar.value
    if grammar.type == "regex":
        if not isinstance(value, str):
            raise validation("grammar is not valid: a regex is a text")
        return GrammarSpec("regex", value)
    if grammar.type == "json_schema":
        if not isinstance(value, dict) or not isinstance(value.get("schema"), dict):
            raise validation("grammar is not valid: a json_schema has a 'schema', which is an object")
        value = value["schema"]
    return GrammarSpec("json_schema", _schema_text(value, settings))


def bad_grammar(reason: str) -> TgiError:
    """Returns the error of a grammar that cannot be compiled."""
    return validation(f"grammar is not valid: {reason}")


def _schema_text(value: Any, settings: TgiSettings) -> str:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise bad_grammar(str(error)) from None
    if not isinstance(value, dict):
        raise validation("grammar is not supported")
    if "properties" not in value and not settings.is_strict:
        raise bad_grammar("Grammar must have a 'properties' field")
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _best_of(asked: Parameters, settings: TgiSettings) -> int:
    best_of = 1 if asked.best_of is None else asked.best_of
    if settings.max_best_of == 1 and best_of != 1:
        raise validation("`best_of` != 1 is not allowed for this endpoint")
    if not 0 < best_of <= settings.max_best_of:
        raise validation(f"`best_of` must be > 0 and <= {settings.max_best_of}. Given: {_show(best_of)}")
    choices = (asked.temperature, asked.top_k, asked.top_p, asked.typical_p)
    if best_of > 1 and not asked.do_sample and all(choice is None for choice in choices):
        raise validation("you must use sampling when `best_of` is > 1")
    return best_of


def _check_ranges(asked: Parameters, settings: TgiSettings) -> None:
    is_strict = settings.is_strict
    if asked.temperature is not None and not (asked.temperature > 0 or (is_strict and asked.temperature == 0)):
        raise validation("`temperature` must be strictly positive")
    if asked.repetition_penalty is not None and not asked.repetition_penalty > 0:
        raise validation("`repetition_penalty` must be strictly positive")
    if asked.frequency_penalty is not None and not -2 <= asked.frequency_penalty <= 2:
        raise validation("`frequency_penalty` must be >= -2.0 and <= 2.0")
    for name in ("top_p", "typical_p"):
        value = getattr(asked, name)
        if value is not None and not (0 < value < 1 or (is_strict and value == 1)):
            raise validation(f"`{name}` must be > 0.0 and < 1.0")
    if asked.top_k is not None and asked.top_k <= 0:
        raise validation("`top_k` must be strictly positive")
    if asked.max_new_tokens == 0:
        raise validation("`max_new_tokens` must be strictly positive")
    if len(asked.stop) > settings.max_stop_sequences:
        raise validation(
            f"`stop` supports up to {settings.max_stop_sequences} stop sequences. Given: {len(asked.stop)}"
        )
    if asked.seed is not None and (asked.best_of or 1) > 1:
        raise validation("`seed` must not be set when `best_of` > 1")
    if asked.seed is not None and asked.seed >= _U64:
        raise validation("`seed` must be less than 2^64")
    if asked.top_n_tokens is not None and asked.top_n_tokens > settings.max_top_n_tokens:
        raise validation(
            f"`top_n_tokens` must be >= 0 and <= {settings.max_top_n_tokens}. Given: {asked.top_n_tokens}"
        )


def _check_offered(asked: Parameters) -> None:
    if asked.watermark:
        raise validation("`watermark` is not supported: this server does not mark its text")
    if asked.adapter_id:
        raise validation("`adapter_id` is not supported: this server serves one model without adapters")


def _is_sampled(asked: Parameters) -> bool:
    """Whether TGI samples: a temperature of 1 alone does not make it."""
    if asked.temperature == 0:
        return False
    return (
        asked.do_sample
        or asked.temperature not in (None, 1.0)
        or asked.top_k is not None
        or asked.top_p not in (None, 1.0)
        or asked.typical_p not in (None, 1.0)
    )


def _show(number: int) -> str:
    """A number a client sent, cut where it is absurd."""
    return str(number) if abs(number) < 10**_LONGEST_SHOWN else "a huge number"
