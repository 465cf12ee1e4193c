from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import click
import pytest

from millpond.api.request import ErrorInfo, OutputEvent, Request, SamplingParams
from millpond.base.errors import MillpondError, RequestError
from millpond.cli import chat as chat_module
from millpond.cli.chat import Answerer, Conversation


class FakeStream:
    """The events of one request; says whether it was closed before its end."""

    def __init__(self, events: list[OutputEvent], hangs: bool) -> None:
        self.events, self.hangs, self.closed = events, hangs, False

    async def __aiter__(self) -> AsyncIterator[OutputEvent]:
        for event in self.events:
            yield event
        if self.hangs:
            await asyncio.Event().wait()

    async def aclose(self) -> None:
        self.closed = True


class FakeEngine:
    """Answers every request with the same events and keeps what it was asked."""

    def __init__(self, *texts: str, error: str | None = None, hangs: bool = False, has_template: bool = True) -> None:
        info = None if error is None else ErrorInfo("engine_dead", error)
        self.events = [OutputEvent("r", 0, text, [1], error=info) for text in texts]
        self.hangs = hangs
        self.requests: list[Request] = []
        self.rendered: list[list[dict[str, str]]] = []
        self.streams: list[FakeStream] = []
        template = SimpleNamespace(render=self._render) if has_template else None
        self.text = SimpleNamespace(chat_template=template, tokenizer=SimpleNamespace(encode=self._encode))

    def _render(self, messages: list[dict[str, str]], **_: Any) -> str:
        self.rendered.append(messages)
        return "".join(f"<{message['role']}>{message['content']}" for message in messages)

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return list(text.encode())

    def generate(self, request: Request) -> FakeStream:
        self.requests.append(request)
        self.streams.append(FakeStream(self.events, self.hangs))
        return self.streams[-1]


def answerer(engine: FakeEngine) -> Answerer:
    return Answerer(engine, SamplingParams(max_tokens=9))  # type: ignore[arg-type]


def test_a_turn_is_a_question_and_an_answer() -> None:
    conversation = Conversation("Be brief.")
    conversation.ask("Hi")
    conversation.answer("Hello")
    assert conversation.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
    ]


def test_an_answer_that_never_began_takes_its_question_along() -> None:
    conversation = Conversation()
    conversation.ask("Hi")
    conversation.answer("")
    assert conversation.messages == []


def test_reset_keeps_the_system_message() -> None:
    conversation = Conversation("Be brief.")
    conversation.ask("Hi")
    assert conversation.command("/reset") == "The conversation is forgotten."
    assert conversation.messages == [{"role": "system", "content": "Be brief."}]


def test_system_sets_the_message_and_starts_over() -> None:
    conversation = Conversation()
    conversation.ask("Hi")
    conversation.command("/system  Speak French. ")
    assert conversation.messages == [{"role": "system", "content": "Speak French."}]


def test_system_without_text_removes_the_message() -> None:
    conversation = Conversation("Be brief.")
    conversation.command("/system")
    assert conversation.messages == []


def test_quit_leaves() -> None:
    assert Conversation().command("/quit") is None


def test_help_lists_every_command() -> None:
    shown = Conversation().command("/help")
    assert shown is not None
    assert all(name in shown for name in ("/reset", "/system", "/help", "/quit"))


def test_a_mistyped_command_gets_a_suggestion() -> None:
    assert Conversation().command("/rest") == "There is no command /rest. Did you mean '/reset'?"


async def test_an_answer_is_shown_as_it_comes() -> None:
    engine, shown = FakeEngine("Hel", "lo"), []
    asked = Conversation()
    asked.ask("Hi")
    teller = answerer(engine)
    await teller.answer(asked, shown.append)
    assert shown == ["Hel", "lo"]
    assert teller.said == "Hello"
    assert teller.summary.startswith("2 tokens")


async def test_the_whole_conversation_is_sent() -> None:
    engine = FakeEngine("a")
    conversation = Conversation("S", [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}])
    conversation.ask("3")
    await answerer(engine).answer(conversation, lambda _: None)
    assert bytes(engine.requests[0].prompt_token_ids).decode() == "<system>S<user>1<assistant>2<user>3"


async def test_an_engine_error_is_raised_and_what_was_said_is_kept() -> None:
    teller = answerer(FakeEngine("Hel", error="The engine died."))
    with pytest.raises(MillpondError, match="The engine died"):
        await teller.answer(Conversation(), lambda _: None)
    assert teller.said == "Hel"


async def test_a_cancelled_answer_is_closed_in_the_engine() -> None:
    engine = FakeEngine("Hel", hangs=True)
    teller = answerer(engine)
    first = asyncio.Event()
    task = asyncio.create_task(teller.answer(Conversation(), lambda _: first.set()))
    await first.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert engine.streams[0].closed
    assert teller.said == "Hel"


async def test_a_model_without_a_template_is_told() -> None:
    with pytest.raises(RequestError, match="has no chat template"):
        await answerer(FakeEngine(has_template=False)).answer(Conversation(), lambda _: None)


def talk(monkeypatch: pytest.MonkeyPatch, engine: FakeEngine, *typed: str | BaseException) -> Conversation:
    """Types lines into the chat; an exception stands for a key like Ctrl-C, the end of the list for Ctrl-D."""
    waiting = iter(typed)

    def read(_: str = "") -> str:
        line = next(waiting, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    conversation = Conversation()
    with asyncio.Runner() as runner:
        chat_module._talk(runner, answerer(engine), conversation)
    return conversation


def test_lines_are_answered_until_the_end(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    conversation = talk(monkeypatch, FakeEngine("Hello"), "Hi", "  ", "Bye")
    assert capsys.readouterr().out == "Hello\nHello\n"
    assert [turn["content"] for turn in conversation.turns] == ["Hi", "Hello", "Bye", "Hello"]


def test_ctrl_c_at_the_prompt_does_not_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    conversation = talk(monkeypatch, FakeEngine("Hello"), KeyboardInterrupt(), "Hi")
    assert len(conversation.turns) == 2


def test_ctrl_c_in_an_answer_stops_the_answer_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(text: str) -> None:
        click.echo(text, nl=False)
        raise KeyboardInterrupt

    monkeypatch.setattr(chat_module, "_show", interrupt)
    engine = FakeEngine("Hel", "lo")
    conversation = talk(monkeypatch, engine, "Hi", "/reset", "/quit")
    shown = capsys.readouterr()
    assert "[stopped]" in shown.err
    assert "forgotten" in shown.err
    assert conversation.turns == []
    assert engine.streams[0].closed


def test_an_error_does_not_end_the_chat(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    conversation = talk(monkeypatch, FakeEngine("", error="The engine died."), "Hi", "Hi again")
    assert capsys.readouterr().err.count("Error: The engine died.") == 2
    assert conversation.turns == []
