"""Checks that files and functions stay small: over 400 lines is listed, over 800 fails, and a function over 60 fails.

Run by `make lint` from the repository's root. Counts what git tracks or would track; a function's decorators and
docstring count, as they do for whoever reads it.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

SOFT_LINES = 400
HARD_LINES = 800
FUNCTION_LINES = 60
POSITIONAL = 5
SUFFIXES = {".py", ".cpp", ".h", ".js", ".css", ".html", ".sh"}


def main() -> int:
    """Prints what is too long and returns 1 when something must be cut."""
    failed = False
    for path in source_files():
        text = path.read_text(encoding="utf-8")
        lines = text.count("\n")
        if lines > SOFT_LINES:
            print(f"{path}: {lines} lines" + (f", more than {HARD_LINES}" if lines > HARD_LINES else " (listed only)"))
        failed |= lines > HARD_LINES
        if path.suffix == ".py":
            for complaint in function_complaints(text):
                print(f"{path}:{complaint}")
                failed = True
    return int(failed)


def source_files() -> list[Path]:
    """Returns the tracked and the not ignored new source files."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return sorted({path for path in map(Path, names) if path.suffix in SUFFIXES and path.is_file()})


def function_complaints(text: str) -> Iterator[str]:
    """Yields "line: what is wrong" for each function that is too long or takes too many positional parameters."""
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        yield f"{error.lineno}: {error.msg}"
        return
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        length = (node.end_lineno or first) - first + 1
        if length > FUNCTION_LINES:
            yield f"{node.lineno}: {node.name} has {length} lines, more than {FUNCTION_LINES}"
        names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
        count = len(names) - (names[:1] in (["self"], ["cls"]))
        if count > POSITIONAL and not node.decorator_list:
            yield f"{node.lineno}: {node.name} takes {count} positional parameters, more than {POSITIONAL}"


if __name__ == "__main__":
    sys.exit(main())
