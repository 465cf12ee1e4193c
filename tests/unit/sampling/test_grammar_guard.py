"""Grammars checked in a process that its own limits can kill."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator

import pytest

from millpond.api.request import GrammarSpec
from millpond.base.errors import MillpondError, RequestError
from millpond.inference.sampling import grammar_guard
from millpond.inference.sampling.grammar_bounds import GrammarLimits
from millpond.inference.sampling.grammar_guard import GrammarGuard
from tests.unit.sampling.toy_tokenizer import make_byte_level, make_character_level

GOOD = GrammarSpec("json_schema", '{"type": "object"}')
# Their least common multiple makes an automaton of billions of states, on which the library spends no fuel.
ENDLESS = GrammarSpec(
    "json_schema", json.dumps({"anyOf": [{"type": "integer", "multipleOf": 900 + i} for i in range(40)]})
)
BOUNDLESS = GrammarLimits(max_multiple=10**200)


@pytest.fixture(scope="module")
def guard() -> Iterator[GrammarGuard]:
    with GrammarGuard(make_byte_level()) as guard:
        yield guard


def test_good_grammars_pass(guard: GrammarGuard) -> None:
    guard.check(GOOD)
    guard.check(GrammarSpec("regex", "a+"))


@pytest.mark.parametrize("spec", [GrammarSpec("regex", "a(?=b)"), GrammarSpec("lark", "start: start")])
def test_refuses_what_the_compiler_refuses_and_goes_on(guard: GrammarGuard, spec: GrammarSpec) -> None:
    with pytest.raises(RequestError, match="cannot be used") as caught:
        guard.check(spec)

    assert (caught.value.param, bool(caught.value.fix)) == ("grammar", True)
    guard.check(GOOD)


def test_a_grammar_out_of_bounds_needs_no_worker() -> None:
    guard = GrammarGuard(make_byte_level())

    with pytest.raises(RequestError):
        guard.check(ENDLESS)

    assert guard._process is None


def test_a_grammar_that_never_compiles_is_refused_and_the_next_one_passes() -> None:
    with GrammarGuard(make_byte_level(), limits=BOUNDLESS, cpu_seconds=0.3) as guard:
        with pytest.raises(RequestError, match="takes too long to compile"):
            guard.check(ENDLESS)

        guard.check(GOOD)


def test_a_grammar_that_eats_memory_is_refused() -> None:
    limits = GrammarLimits(max_source_bytes={"regex": 1 << 20}, compile_fuel=1 << 40)
    spec = GrammarSpec("regex", "(a|b|c)?" * 20_000)
    with (
        GrammarGuard(make_byte_level(), limits=limits, cpu_seconds=20.0, memory_bytes=300 << 20) as guard,
        pytest.raises(RequestError, match="takes too much memory"),
    ):
        guard.check(spec)


def test_a_worker_that_was_killed_between_grammars_is_replaced(guard: GrammarGuard) -> None:
    guard.start()
    process = guard._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()

    guard.check(GrammarSpec("regex", "again"))


def test_closing_ends_the_worker() -> None:
    guard = GrammarGuard(make_byte_level())
    guard.start()
    process = guard._process
    assert process is not None

    guard.close()
    guard.close()

    assert process.returncode == 0


def test_the_worker_ends_with_its_input() -> None:
    with GrammarGuard(make_byte_level()) as guard:
        guard.start()
        process = guard._process
        assert process is not None
        assert process.stdin is not None

        process.stdin.close()

        assert process.wait(timeout=10) == 0


def test_a_grammar_known_to_be_good_is_not_asked_again(guard: GrammarGuard, monkeypatch: pytest.MonkeyPatch) -> None:
    guard.check(GOOD)
    monkeypatch.setattr(guard, "_ask", lambda spec: pytest.fail("asked"))

    guard.check(GOOD)


def test_a_tokenizer_without_byte_rules_does_not_stop_the_check() -> None:
    with GrammarGuard(make_character_level()) as guard:
        guard.check(GOOD)


def test_a_model_without_an_end_token_takes_no_grammar() -> None:
    with (
        GrammarGuard(make_byte_level(), eos_token_ids=[]) as guard,
        pytest.raises(RequestError, match="no end-of-sequence token"),
    ):
        guard.check(GOOD)


def test_a_worker_that_cannot_start_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_guard, "WORKER_MODULE", "millpond.no_such_module")

    with pytest.raises(MillpondError, match="did not start"):
        GrammarGuard(make_byte_level()).check(GOOD)
