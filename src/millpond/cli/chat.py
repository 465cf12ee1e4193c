"""`millpond chat`: a conversation in the terminal, streamed.

Owns the conversation and the commands typed into it (`Conversation`, pure) and the loop that reads lines and shows
answers. The engine runs in its own process, so Ctrl-C ends the answer and not the program.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from millpond.base.errors import MillpondError, RequestError
from millpond.base.progress import StageProgress
from millpond.base.suggest import did_you_mean
from millpond.cli.options import SettingsCommand, sampling_options, setting_options, take_config, take_sampling

if TYPE_CHECKING:
    import asyncio

    from millpond.api.request import SamplingParams
    from millpond.config.schema import EngineConfig
    from millpond.inference.engine.client import AsyncEngine

COMMANDS = {
    "/reset": "forget the conversation, keep the system message",
    "/system TEXT": "set the system message (nothing: remove it) and start over",
    "/help": "show this",
    "/quit": "leave (Ctrl-D does too)",
}


@click.command(
    cls=SettingsCommand,
    params=[*sampling_options(), *setting_options("model", "cache", "scheduler", "speculation", "runtime")],
)
@click.argument("model", metavar="[MODEL]", required=False)
@click.option("--system", help="System message to start with.")
def chat(model: str | None, system: str | None, **flags: Any) -> None:
    """Holds a conversation in the terminal.

    Ctrl-C stops an answer. In the chat: /reset, /system TEXT, /help, /quit.
    """
    params = take_sampling(flags, max_tokens=None, temperature=0.7, top_p=0.9)
    config = take_config(flags, model)
    import asyncio

    with asyncio.Runner() as runner:
        engine = runner.run(_start(config))
        try:
            _talk(runner, Answerer(engine, params), Conversation(system))
        finally:
            runner.run(engine.close())


@dataclass(slots=True)
class Conversation:
    """The messages so far, and what the typed commands do to them."""

    system: str | None = None
    turns: list[dict[str, str]] = field(default_factory=list)

    @property
    def messages(self) -> list[dict[str, str]]:
        first = [{"role": "system", "content": self.system}] if self.system else []
        return [*first, *self.turns]

    def ask(self, text: str) -> None:
        """Adds what the user said."""
        self.turns.append({"role": "user", "content": text})

    def answer(self, text: str) -> None:
        """Adds what the model said; an answer that never began takes its question along."""
        if text:
            self.turns.append({"role": "assistant", "content": text})
        elif self.turns:
            self.turns.pop()

    def command(self, line: str) -> str | None:
        """Carries out a typed command; returns what to print, or None to leave."""
        name, _, rest = line.partition(" ")
        if name == "/quit":
            return None
        if name == "/help":
            return "\n".join(f"{command:<14} {what}" for command, what in COMMANDS.items())
        if name == "/reset":
            self.turns.clear()
            return "The conversation is forgotten."
        if name == "/system":
            self.system = rest.strip() or None
            self.turns.clear()
            return "The system message is set." if self.system else "There is no system message now."
        known = [command.split()[0] for command in COMMANDS]
        return f"There is no command {name}. {did_you_mean(name, known)}"


class Answerer:
    """Asks the engine for the next message of a conversation."""

    def __init__(self, engine: AsyncEngine, params: SamplingParams) -> None:
        self._engine = engine
        self._params = params
        self._numbers = itertools.count()
        self.said = ""
        self.summary = ""

    async def answer(self, conversation: Conversation, show: Callable[[str], None]) -> None:
        """Streams the answer into `show`. `said` holds it so far, also when this is cancelled or fails."""
        from millpond.api.request import Request

        self.said = self.summary = ""
        template = self._engine.text.chat_template
        if template is None:
            raise RequestError("The model has no chat template.", fix="Give one with --model.chat_template FILE.")
        prompt = template.render(conversation.messages, add_generation_prompt=True)
        tokens = self._engine.text.tokenizer.encode(prompt, add_special_tokens=False)
        request = Request(request_id=f"chat-{next(self._numbers)}", prompt_token_ids=tokens, params=self._params)
        start = time.perf_counter()
        first = last = start
        count = 0
        stream = self._engine.generate(request)
        try:
            async for event in stream:
                last = time.perf_counter()
                first = first if count else last
                count += len(event.token_ids)
                self.said += event.text
                show(event.text)
                if event.error is not None:
                    raise MillpondError(event.error.message)
        finally:
            await stream.aclose()
        rate = f", {(count - 1) / (last - first):.1f} tokens/s" if count > 1 and last > first else ""
        self.summary = f"{count} tokens{rate}, first after {first - start:.2f} s"


async def _start(config: EngineConfig) -> AsyncEngine:
    from millpond.inference.engine.client import AsyncEngine

    with StageProgress() as progress:
        return await AsyncEngine.start(config, progress)


def _talk(runner: asyncio.Runner, answerer: Answerer, conversation: Conversation) -> None:
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        import readline  # noqa: F401  # gives input() its line editing and history

        click.echo("Ctrl-C stops an answer, /help lists the commands, /quit leaves.", err=True)
    while (line := _read_line(is_terminal)) is not None:
        if line.startswith("/"):
            reply = conversation.command(line)
            if reply is None:
                return
            click.echo(reply, err=True)
        elif line:
            _answer_one(runner, answerer, conversation, line, is_terminal)


def _answer_one(
    runner: asyncio.Runner, answerer: Answerer, conversation: Conversation, line: str, is_terminal: bool
) -> None:
    conversation.ask(line)
    try:
        runner.run(answerer.answer(conversation, _show))
    except KeyboardInterrupt:
        click.echo(" [stopped]", err=True)
    except MillpondError as error:
        click.echo(f"\nError: {error}", err=True)
    else:
        click.echo()
        if is_terminal:
            click.secho(f"[{answerer.summary}]", dim=True, err=True)
    conversation.answer(answerer.said)


def _read_line(is_terminal: bool) -> str | None:
    """Returns the next line typed, or None at the end. Ctrl-C throws away the line."""
    while True:
        try:
            return input("\n> " if is_terminal else "").strip()
        except EOFError:
            return None
        except KeyboardInterrupt:
            if not is_terminal:
                raise
            click.echo("\nLeave with /quit or Ctrl-D.", err=True)


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
