from __future__ import annotations

import io

import pytest

from millpond.base.progress import StageProgress


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def lines(stream: io.StringIO) -> list[str]:
    return stream.getvalue().splitlines()


def test_a_stage_is_one_line_when_it_is_short() -> None:
    stream, clock = io.StringIO(), Clock()
    with StageProgress(stream=stream, clock=clock) as progress:
        for tenth in range(11):
            progress("Reading weights", tenth / 10)
    assert lines(stream) == ["Reading weights ..."]


def test_a_long_stage_says_how_far_it_is_and_how_long_it_took() -> None:
    stream, clock = io.StringIO(), Clock()
    with StageProgress(stream=stream, clock=clock) as progress:
        for tenth in range(11):
            clock.now = tenth * 3.0
            progress("Reading weights", tenth / 10)
    assert lines(stream) == [
        "Reading weights ...",
        "Reading weights ... 40%",
        "Reading weights ... 80%",
        "Reading weights: done in 30.00 s",
    ]


def test_stages_follow_each_other() -> None:
    stream = io.StringIO()
    with StageProgress(stream=stream, clock=Clock()) as progress:
        progress("one", 0.0)
        progress("two", 0.0)
        progress("two", 1.0)
    assert lines(stream) == ["One ...", "Two ..."]


def test_quiet_says_nothing() -> None:
    stream = io.StringIO()
    with StageProgress(stream=stream, quiet=True) as progress:
        progress("one", 0.0)
    assert lines(stream) == []


def test_nothing_is_said_after_the_end() -> None:
    stream = io.StringIO()
    with StageProgress(stream=stream) as progress:
        pass
    progress("late", 0.0)
    assert lines(stream) == []


def test_a_terminal_gets_a_bar_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")  # a terminal that cannot go back in a line has no bars

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with StageProgress(stream=stream) as progress:
        progress("Reading weights", 0.5)
    assert "Reading weights" in stream.getvalue()
    assert "50%" in stream.getvalue()
