"""The examples of docs/guide/servables.md, served as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from millpond.serve.repository.repository import ModelRepository
from tests.integration.backends.conftest import Bench
from tests.integration.backends.test_python import NUMBERS
from tests.integration.backends.test_servable_class import DOUBLE


@pytest.fixture
def examples(repo_root: Path) -> list[str]:
    page = (repo_root / "docs/guide/servables.md").read_text()
    return re.findall(r"^```py\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)


async def test_the_guides_examples_are_served_from_a_repository(bench: Bench, examples: list[str]) -> None:
    bench.write("double", NUMBERS % ("double", 8), DOUBLE)
    for name, source in zip(("sentiment", "doubled"), examples, strict=True):
        (bench.folder / name / "1").mkdir(parents=True)
        (bench.folder / name / "1" / "servable.py").write_text(source)
    repository = ModelRepository([bench.folder], bench.servables)
    try:
        assert await repository.start() == []
        texts = np.array([[b"a great day"], [b"great fine"]], np.object_)
        verdict = (await bench.infer("sentiment", {"text": texts})).outputs
        assert verdict["label"].array.tolist() == [[b"unkind"], [b"kind"]]
        assert verdict["score"].array.tolist() == [[1 / 3], [1.0]]
        one = np.array([b"four"], np.object_)
        lengths = (await bench.infer("sentiment", {"text": one}, method="measure")).outputs["length"]
        assert lengths.array.tolist() == [4]
        doubled = (await bench.infer("doubled", {"numbers": np.array([[b"1 2 3"]], np.object_)})).outputs["output"]
        assert doubled.array.tolist() == [[b"2 4 6"]]
    finally:
        await repository.close()
