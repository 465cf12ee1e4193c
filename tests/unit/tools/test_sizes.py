from __future__ import annotations

import textwrap

from tools.sizes import function_complaints


def complaints(source: str) -> list[str]:
    return list(function_complaints(textwrap.dedent(source)))


def make_function(lines: int) -> str:
    return "def long():\n" + "    pass\n" * (lines - 1)


def test_a_function_of_sixty_lines_passes() -> None:
    assert complaints(make_function(60)) == []


def test_a_longer_function_is_named_with_its_line() -> None:
    assert complaints("\n" + make_function(61)) == ["2: long has 61 lines, more than 60"]


def test_decorators_count() -> None:
    assert complaints("@a\n" + make_function(60)) == ["2: long has 61 lines, more than 60"]


def test_a_sixth_positional_parameter_is_too_many() -> None:
    assert complaints("def f(a, b, c, d, e, f): ...") == ["1: f takes 6 positional parameters, more than 5"]


def test_keyword_parameters_and_self_do_not_count() -> None:
    assert complaints("class A:\n    def f(self, a, b, c, d, e, *, f): ...") == []


def test_a_file_that_does_not_parse_is_a_complaint() -> None:
    (complaint,) = complaints("def f(:")
    assert complaint.startswith("1:")
