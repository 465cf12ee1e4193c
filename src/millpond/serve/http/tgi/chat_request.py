"""From TGI's OpenAI bodies to a prompt and parameters.

Rendering and tools are those of our own OpenAI routes; their errors become TGI's. Peculiarities of TGI that this keeps
in the compatible form: a presence penalty is a repetition penalty, every model name means the served one, `n` and
`logit_bias` are ignored.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from millpond.api.request import GrammarSpec
from millpond.base.errors import RequestError
from millpond.serve.http.errors import ApiError
from millpond.serve.http.openai.chat_fields import ChatBody as OpenAIChatBody
from millpond.serve.http.openai.chat_fields import NamedFunction, NamedToolChoice
from millpond.serve.http.openai.chat_prompt import chat_text, template_text
from millpond.serve.http.openai.params import schema_grammar
from millpond.serve.http.openai.tools import ToolUse, tool_use
from millpond.serve.http.tgi.chat_fields import ChatBody, FunctionChoice, OpenAIFields, ResponseFormat
from millpond.serve.http.tgi.checking import bad_grammar, grammar_spec
from millpond.serve.http.tgi.errors import TgiError, validation
from millpond.serve.http.tgi.fields import Grammar, Parameters
from millpond.serve.http.tgi.server import TgiCall
from millpond.serve.http.tgi.settings import TgiSettings

_WORDS = {"auto": "auto", "none": "none", "no_tool": "none", "required": "required"}


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as text, and what its tools mean for the answer."""

    text: str
    use: ToolUse
    grammar: GrammarSpec | None


def rendered(call: TgiCall, body: ChatBody) -> Rendered:
    """Renders a conversation.

    Raises:
        TgiError: The model cannot be shown it, or not be held to the form that is asked for.
    """
    text = call.engine.text
    if text.chat_template is None:
        raise _template_error("template not found")
    if not body.messages:
        raise _template_error("there are no messages")
    grammar = _grammar(body.response_format, call.server.settings)
    made = _as_openai(body)
    try:
        use = tool_use(made, template_text(text), grammar is not None)
    except ApiError as error:
        raise _tool_error(str(error)) from error
    if use.grammar is not None and not call.server.settings.has_grammar:
        raise validation("grammar is not supported")
    try:
        shown = chat_text(made, use, text)
    except (ApiError, RequestError) as error:
        raise _template_error(str(error)) from error
    return Rendered(shown, use, use.grammar or grammar)


def chat_parameters(body: ChatBody, settings: TgiSettings) -> Parameters:
    """Returns the parameters of a chat request.

    Raises:
        TgiError: It wants what the strict form refuses to ignore.
    """
    parameters = shared_parameters(body, settings)
    if body.top_logprobs is not None and not body.logprobs:
        raise validation("`top_logprobs` needs `logprobs` to be true")
    if body.presence_penalty is not None and settings.is_strict:
        raise validation("`presence_penalty` is not supported by this port: use `frequency_penalty`")
    return msgspec.structs.replace(
        parameters,
        repetition_penalty=None if body.presence_penalty is None else body.presence_penalty + 2.0,
        max_new_tokens=body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens,
        top_n_tokens=body.top_logprobs,
    )


def shared_parameters(body: OpenAIFields, settings: TgiSettings) -> Parameters:
    """Returns what both routes have in common; see `chat_parameters`."""
    if settings.is_strict and body.n not in (None, 1):
        raise validation("`n` is not supported by this port: it gives one answer")
    if settings.is_strict and body.logit_bias:
        raise validation("`logit_bias` is not supported by this port")
    is_greedy = body.temperature == 0
    stop = [body.stop] if isinstance(body.stop, str) else list(body.stop or ())
    return Parameters(
        do_sample=not is_greedy,
        temperature=None if is_greedy else body.temperature,
        top_p=None if body.top_p == 1 else body.top_p,  # OpenAI's default, sent by many clients
        frequency_penalty=body.frequency_penalty,
        stop=stop,
        seed=body.seed,
        max_new_tokens=body.max_tokens,
    )


def check_model(call: TgiCall, name: str | None) -> str:
    """Returns the model's name; the strict form refuses other names than that and "tgi"."""
    served = call.engine.info.model
    if call.server.settings.is_strict and name not in (None, "tgi", served):
        raise TgiError("validation", f"The model {name[:200]!a} does not exist here.", status=404)
    return served


def _as_openai(body: ChatBody) -> OpenAIChatBody:
    messages = list(body.messages)
    last = messages[-1]
    if body.tools and body.tool_prompt and isinstance(last.content, str):
        messages[-1] = msgspec.structs.replace(last, content=f"{last.content}\n---\n{body.tool_prompt}")
    choice = body.tool_choice
    made: str | NamedToolChoice | None = None
    if isinstance(choice, FunctionChoice):
        made = NamedToolChoice("function", NamedFunction(choice.function.name))
    elif choice is not None:  # TGI takes a bare name as well
        made = _WORDS.get(choice) or NamedToolChoice("function", NamedFunction(choice))
    return OpenAIChatBody(
        messages=messages,
        tools=body.tools,
        tool_choice=made if body.tools else None,  # type: ignore[arg-type]
        parallel_tool_calls=False,
        continue_final_message=last.role == "assistant",
        chat_template_kwargs=None if body.guideline is None else {"guideline": body.guideline},
    )


def _grammar(form: ResponseFormat | None, settings: TgiSettings) -> GrammarSpec | None:
    if form is None or form.type == "text":
        return None
    if form.type == "json_schema" and form.json_schema is not None:
        schema = form.json_schema.get("schema")
        if not isinstance(schema, dict):
            raise bad_grammar("a json_schema has a 'schema', which is an object")
        if not settings.has_grammar:
            raise validation("grammar is not supported")
        return schema_grammar(schema)
    if form.type == "json_object" and form.value is None:
        return GrammarSpec("json_object") if settings.has_grammar else grammar_spec(Grammar("json", {}), settings)
    return grammar_spec(Grammar(form.type, form.value), settings)


def _template_error(text: str) -> TgiError:
    return TgiError("template_error", f"Template error: {text}")


def _tool_error(text: str) -> TgiError:
    return TgiError("tool_error", f"Tool error: {text}")
