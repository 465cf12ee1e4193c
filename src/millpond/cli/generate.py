"""`millpond generate`: completes prompts offline, all in one batch."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from millpond.base.errors import MillpondError
from millpond.cli.options import SettingsCommand, sampling_options, setting_options, take_config, take_sampling

if TYPE_CHECKING:
    from millpond.api.request import SamplingParams
    from millpond.inference.engine.llm import LLM
    from millpond.inference.engine.results import RequestOutput


@click.command(
    cls=SettingsCommand,
    params=[*sampling_options(), *setting_options("model", "cache", "scheduler", "speculation", "runtime")],
)
@click.argument("model", metavar="[MODEL]", required=False)
@click.option("-p", "--prompt", "prompts", multiple=True, help="Text to complete; several make a batch.")
@click.option(
    "-n",
    "num_choices",
    metavar="N",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Answers to each prompt.",
)
@click.option("--chat", is_flag=True, help="Put each prompt into the model's chat template, as a user's message.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a prompt, one a line.")
def generate(
    model: str | None, prompts: tuple[str, ...], num_choices: int, chat: bool, as_json: bool, **flags: Any
) -> None:
    """Completes prompts offline, in one batch.

    Prompts are those given with --prompt, or else all of standard input as one. Text goes to standard output, progress
    and errors to standard error.
    """
    params = take_sampling(flags, n=num_choices, max_tokens=128)
    config = take_config(flags, model)
    texts = list(prompts) or [_read_stdin()]
    from millpond.inference.engine.llm import LLM

    with LLM.from_config(config) as llm:
        outputs = _run(llm, texts, params, chat)
    for text, output in zip(texts, outputs, strict=True):
        if as_json:
            click.echo(json.dumps(as_document(text, output)))
        else:
            click.echo("\n".join(choice.text if chat else f"{text}{choice.text}" for choice in output.outputs))
    failed = [choice.error for output in outputs for choice in output.outputs if choice.error is not None]
    if failed:
        raise MillpondError(f"{len(failed)} answers are incomplete; the first: {failed[0].message}")


def as_document(prompt: str, output: RequestOutput) -> dict[str, object]:
    """Returns what --json prints for one prompt."""
    choices = [
        {
            "text": choice.text,
            "token_ids": choice.token_ids,
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
        }
        for choice in output.outputs
    ]
    return {"prompt": prompt, "num_prompt_tokens": len(output.prompt_token_ids), "outputs": choices}


def _run(llm: LLM, texts: list[str], params: SamplingParams, chat: bool) -> list[RequestOutput]:
    if chat:
        return llm.chat([[{"role": "user", "content": text}] for text in texts], params)
    return llm.generate(texts, params)


def _read_stdin() -> str:
    if sys.stdin.isatty():
        raise click.UsageError("There is no prompt. Give one with --prompt, or on standard input.")
    text = sys.stdin.read()
    if not text:
        raise click.UsageError("Standard input is empty. Give a prompt on it or with --prompt.")
    return text
