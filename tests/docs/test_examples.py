"""The Python of the README and the guides, run on a tiny model in place of the one they name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.tiny_checkpoints import make_llama_dir

ROOT = Path(__file__).resolve().parents[2]


def examples() -> list[tuple[str, str]]:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs/guide").glob("*.md"))]
    found = []
    for page in pages:
        blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
        found += [(f"{page.name}-{number}", text) for number, text in enumerate(blocks) if "from millpond" in text]
    return found


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama_dir(tmp_path_factory.mktemp("docs") / "tiny")


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in examples()])
def test_the_example_runs(text: str, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert '"smollm2-135m"' in text
    exec(compile(text.replace("smollm2-135m", str(tiny_model)), "example", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.strip()
