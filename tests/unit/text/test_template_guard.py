"""Hostile templates: what they may not reach, do or hold, and that they say so at once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from millpond.base.errors import RequestError
from millpond.inference.text import ChatTemplate, template_guard

CHAT = [{"role": "user", "content": "hi"}]
REACHES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(a=1) }}",
    "{{ messages[0].clear() }}",
    "{{ '{0.__class__.__mro__}'.format(1) }}",
    "{{ namespace.__init__.__globals__ }}",
)
SILENT = (
    "{{ ''|attr('__class__') }}",
    "{{ self.__init__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__code__ }}",
)
LARGE = (
    "{{ 'a' * 10**10 }}",
    "{{ 10**10 * 'a' }}",
    "{{ [0] * 10**10 }}",
    "{{ 'a'.ljust(10**10) }}",
    "{{ 'a'.zfill(width=10**10) }}",
    "{{ 'a'.encode().center(10**10) }}",
    "{{ 'a'|center(10**10) }}",
    "{{ 'a\na'|indent(10**10) }}",
    "{{ ('a\n' * 100000)|indent(100000) }}",
    "{{ ('a' * 100000)|wordwrap(1, wrapstring='b' * 100000) }}",
    "{{ '%10000000000d' % 1 }}",
    "{{ '%*d' % (10**10, 1) }}",
    "{{ '%s%s' % ('a' * 5000000, 'a' * 5000000) }}",
    "{{ '%10000000000d'|format(1) }}",
    "{{ '{:>10000000000}'.format(1) }}",
    "{{ '{:>{}}'.format(1, 10**10) }}",
    "{{ ('{0}' * 1000000).format('a' * 1000000) }}",
    "{{ ('{a}' * 1000000).format_map({'a': 'a' * 1000000}) }}",
    "{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}",
    "{{ ('a' * 1000000).replace('', 'b' * 1000000) }}",
    "{{ ('a' * 1000000)|replace('a', 'b' * 1000000) }}",
    "{{ ('b' * 1000000).join('a' * 100000) }}",
    "{{ ('a' * 100000)|join('b' * 1000000) }}",
    "{{ ('\t' * 1000000).expandtabs(100000) }}",
    "{{ ('a' * 1000000).translate({97: 'b' * 1000000}) }}",
    "{{ (1).to_bytes(10**11, 'big') }}",
    "{{ [[0] * 100000] * 100000|sum(start=[]) }}",
    "{{ [1]|tojson(indent=1000) }}",
    "{{ [1]|tojson(indent='a' * 1000) }}",
    "{{ (10**1000)**1000 }}",
    "{% set ns = namespace(x=9) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x|tojson }}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x ~ 'a' }}",
    "{{ [[0] * 100000] * 100000  }}",
    "{% for i in range(10000) %}{{ 'a' * 8000 }}{% endfor %}",
    "{% for i in range(10**7) %}{% endfor %}",
)
FAILS = (
    "{{ lipsum(10**9) }}",
    "{% include 'other' %}",
    "{{ nothing() }}",
    "{{ 1 // 0 }}",
    "{{ messages[7].content }}",
    "{{ 'a' + 1 }}",
)


@pytest.mark.parametrize("source", REACHES)
def test_the_interpreters_internals_are_out_of_reach(source: str) -> None:
    with pytest.raises(RequestError, match=r"tried something it may not|fails on this chat"):
        ChatTemplate(source).render(CHAT)


@pytest.mark.parametrize("source", SILENT)
def test_what_is_hidden_reads_as_nothing(source: str) -> None:
    assert ChatTemplate(source).render(CHAT) == ""


@pytest.mark.parametrize("source", LARGE)
def test_a_value_is_refused_before_it_grows(source: str) -> None:
    with pytest.raises(RequestError, match="chat template was stopped: "):
        ChatTemplate(source).render(CHAT)


@pytest.mark.parametrize("source", FAILS)
def test_a_template_that_fails_is_the_requests_error(source: str) -> None:
    with pytest.raises(RequestError, match="fails on this chat"):
        ChatTemplate(source).render(CHAT)


def ticking() -> Iterator[float]:
    """A clock on which every look takes a millisecond."""
    now = 0.0
    while True:
        now += 0.001
        yield now


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% for i in [[[1]] * 99] * 99 recursive %}{{ loop(i) if i is iterable }}{% for j in range(999) %}{% endfor %}"
        "{% endfor %}",
    ],
)
def test_a_loop_without_end_is_stopped_by_time(source: str) -> None:
    clock = ticking()
    with pytest.raises(RequestError, match="longer than 2 s"):
        ChatTemplate(source, clock=lambda: next(clock)).render(CHAT)


def test_a_loop_without_end_is_stopped_by_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_guard, "MAX_TURNS", 1000)
    source = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"
    with pytest.raises(RequestError, match="more than 1000 loop turns"):
        ChatTemplate(source, clock=lambda: 0.0).render(CHAT)


def test_each_render_has_its_own_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_guard, "MAX_TURNS", 1000)
    template = ChatTemplate("{% for i in range(900) %}{% endfor %}ok", clock=lambda: 0.0)
    assert [template.render(CHAT) for _ in range(3)] == ["ok"] * 3


def test_endless_recursion_is_stopped() -> None:
    with pytest.raises(RequestError, match="nested too deeply"):
        ChatTemplate("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}").render(CHAT)


def test_a_chat_nested_too_deeply_is_refused() -> None:
    nested: object = "x"
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(RequestError, match="nested too deeply"):
        ChatTemplate("{{ messages|tojson }}").render([{"role": "user", "content": nested}])


def test_ordinary_formatting_is_not_refused() -> None:
    source = "{{ '%d of %s' % (1234567, 'x') }} {{ 'order 1234567 {:>5}'.format(12) }} {{ 1000000 * 1000000 }}"
    assert ChatTemplate(source).render(CHAT) == "1234567 of x order 1234567    12 1000000000000"


def test_the_error_is_one_bounded_line() -> None:
    with pytest.raises(RequestError) as caught:
        ChatTemplate("{{ raise_exception('long ' * 100000) }}").render(CHAT)
    assert len(caught.value.message) < 1000
