"""Ensembles in a repository: their parts are loaded with them, and what happens when a part goes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from millpond.serve.repository.repository import ModelRepository
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.registry import Servables
from tests.support.memory_backend import MemoryBackend, echo, request_of

TENSORS = """
input [ { name: "X" data_type: TYPE_INT32 dims: [ -1 ] } ]
output [ { name: "X%s" data_type: TYPE_INT32 dims: [ -1 ] } ]
"""
STEP = """
{ model_name: "%s" model_version: %d
  input_map { key: "X" value: "X" } output_map { key: "X%s" value: "XX" } }
"""


@pytest.fixture
async def backend() -> MemoryBackend:
    return MemoryBackend(echo)


@pytest.fixture
async def servables(backend: MemoryBackend) -> AsyncIterator[Servables]:
    made = Servables({"memory": backend})
    yield made
    await made.close()


@pytest.fixture
async def repository(tmp_path: Path, servables: Servables) -> ModelRepository:
    write_model(tmp_path, "part")
    write_ensemble(tmp_path, "whole", "part")
    write_ensemble(tmp_path, "outer", "whole", suffix="X")
    return await opened(tmp_path, servables)


async def opened(root: Path, servables: Servables) -> ModelRepository:
    made = ModelRepository([root], servables, mode="explicit")
    assert await made.start() == []
    return made


def write_model(root: Path, name: str) -> None:
    (root / name / "1").mkdir(parents=True)
    (root / name / "config.pbtxt").write_text(f'name: "{name}" backend: "memory"' + TENSORS % "")


def write_ensemble(root: Path, name: str, part: str, *, version: int = -1, suffix: str = "") -> None:
    (root / name).mkdir(parents=True)
    steps = "ensemble_scheduling { step [ %s ] }" % (STEP % (part, version, suffix))
    (root / name / "config.pbtxt").write_text(f'name: "{name}" platform: "ensemble"' + TENSORS % "X" + steps)


def ready(servables: Servables) -> list[str]:
    return [entry.name for entry in servables.index() if entry.state == "READY"]


async def test_an_ensemble_brings_its_parts(repository: ModelRepository, servables: Servables) -> None:
    await repository.load("outer")
    assert ready(servables) == ["outer", "part", "whole"]
    assert (await servables.infer(request_of("outer", [5]))).outputs["XX"].array.tolist() == [5]


async def test_unloading_with_dependents_takes_what_came_along_and_leaves_what_was_asked_for(
    repository: ModelRepository, servables: Servables
) -> None:
    await repository.load("outer")
    await repository.unload("outer", dependents=True)
    assert ready(servables) == []
    await repository.load("part")
    await repository.load("outer")
    await repository.unload("outer", dependents=True)
    assert ready(servables) == ["part"]
    await repository.load("outer")
    await repository.unload("outer")
    assert ready(servables) == ["part", "whole"]


async def test_ensembles_go_with_their_part_and_come_back_with_it(
    repository: ModelRepository, servables: Servables
) -> None:
    await repository.load("outer")
    await repository.unload("part")
    await servables.settled()
    assert {entry.name: entry.reason for entry in servables.index()} == {
        "part": "unloaded",
        "whole": "ensemble 'whole' depends on 'part' which has no loaded version.",
        "outer": "ensemble 'outer' depends on 'whole' which has no loaded version.",
    }
    await repository.load("part")
    assert ready(servables) == ["outer", "part", "whole"]


async def test_a_part_that_cannot_be_loaded_is_the_ensembles_error(
    repository: ModelRepository, servables: Servables, backend: MemoryBackend, tmp_path: Path
) -> None:
    backend.load_failures.append("no weights")
    with pytest.raises(ServableError) as caught:
        await repository.load("whole")
    assert caught.value.code == "invalid_argument"
    assert caught.value.message == (
        "load failed for model 'whole': ensemble 'whole' depends on 'part' which has no loaded version. Model 'part' "
        "loading failed with error: load failed for model 'part': version 1 is at UNAVAILABLE state: Internal: "
        "no weights;\n\n"
    )
    write_ensemble(tmp_path, "picky", "part", version=7)
    with pytest.raises(ServableError, match="depends on 'part' whose required version 7 is not loaded"):
        await repository.load("picky")


async def test_ensembles_that_need_each_other_are_refused(tmp_path: Path, servables: Servables) -> None:
    write_ensemble(tmp_path, "a", "b", suffix="X")
    write_ensemble(tmp_path, "b", "a", suffix="X")
    repository = await opened(tmp_path, servables)
    with pytest.raises(ServableError, match="circular dependency between ensembles: a -> b -> a"):
        await repository.load("a")
