"""What is loaded, when, and what is said when it cannot be; the texts are Triton's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from millpond.serve.repository.repository import ModelRepository, RepositoryMode
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.registry import Servables
from tests.support.memory_backend import MemoryBackend, echo, request_of

CONFIG = """
name: "%s"
backend: "memory"
input [ { name: "X" data_type: TYPE_INT32 dims: [ -1 ] } ]
output [ { name: "X" data_type: TYPE_INT32 dims: [ -1 ] } ]
%s
"""
ENSEMBLE = """
name: "%s"
platform: "ensemble"
input [ { name: "X" data_type: TYPE_INT32 dims: [ -1 ] } ]
output [ { name: "Y" data_type: TYPE_INT32 dims: [ -1 ] } ]
ensemble_scheduling { step [ {
  model_name: "%s" model_version: -1
  input_map { key: "X" value: "X" } output_map { key: "X" value: "Y" }
} ] }
"""


@pytest.fixture
async def backend() -> MemoryBackend:
    return MemoryBackend(echo)


@pytest.fixture
async def servables(backend: MemoryBackend) -> AsyncIterator[Servables]:
    made = Servables({"memory": backend})
    yield made
    await made.close()


def write_model(root: Path, name: str, *, versions: tuple[int, ...] = (1,), more: str = "") -> Path:
    folder = root / name
    for version in versions:
        (folder / str(version)).mkdir(parents=True, exist_ok=True)
        (folder / str(version) / "weights").write_text(str(version))
    (folder / "config.pbtxt").write_text(CONFIG % (name, more))
    return folder


def write_ensemble(root: Path, name: str, part: str) -> None:
    (root / name / "1").mkdir(parents=True)
    (root / name / "config.pbtxt").write_text(ENSEMBLE % (name, part))


async def opened(
    root: Path, servables: Servables, mode: RepositoryMode = "explicit", **more: object
) -> ModelRepository:
    repository = ModelRepository([root], servables, mode=mode, **more)  # type: ignore[arg-type]
    assert await repository.start() == []
    return repository


async def states(repository: ModelRepository) -> list[tuple[str, int, str]]:
    return [(entry.name, entry.version, entry.state) for entry in await repository.index()]


async def fault(work: object) -> tuple[str, str]:
    with pytest.raises(ServableError) as caught:
        await work  # type: ignore[misc]  # a coroutine or None
    return caught.value.code, caught.value.message


async def test_the_default_mode_loads_everything_at_the_start(tmp_path: Path, servables: Servables) -> None:
    write_model(tmp_path, "a", versions=(1, 3, 2))
    write_model(tmp_path, "b", versions=(1, 3, 2), more="version_policy { latest { num_versions: 2 } }")
    repository = await opened(tmp_path, servables, "none")
    assert await states(repository) == [("a", 3, "READY"), ("b", 2, "READY"), ("b", 3, "READY")]
    for work in (repository.load("a"), repository.unload("a")):
        assert await fault(work) == (
            "unavailable",
            "explicit model load / unload is not allowed if polling is enabled",
        )


async def test_what_cannot_be_loaded_at_the_start_is_told_and_does_not_stop_the_others(
    tmp_path: Path, servables: Servables, backend: MemoryBackend
) -> None:
    write_model(tmp_path, "a")
    write_model(tmp_path, "b")
    backend.broken["a"] = "no weights"
    repository = ModelRepository([tmp_path], servables)
    (failure,) = await repository.start()
    assert failure.name == "a"
    assert failure.error.message == (
        "load failed for model 'a': version 1 is at UNAVAILABLE state: Internal: no weights;\n"
    )
    assert await states(repository) == [("a", 1, "UNAVAILABLE"), ("b", 1, "READY")]


async def test_explicit_mode_loads_and_unloads_what_it_is_told(tmp_path: Path, servables: Servables) -> None:
    write_model(tmp_path, "a")
    write_model(tmp_path, "b")
    repository = await opened(tmp_path, servables, startup=("b",))
    assert await states(repository) == [("a", 0, ""), ("b", 1, "READY")]
    await repository.load("a")
    await repository.unload("b")
    await servables.settled()
    entries = await repository.index()
    assert [(entry.state, entry.reason) for entry in entries] == [("READY", ""), ("UNAVAILABLE", "unloaded")]
    assert [entry.name for entry in await repository.index(ready_only=True)] == ["a"]
    await repository.unload("never-heard-of")


@pytest.mark.parametrize("name", ["nope", "", "..", "../outside", "a/b"])
async def test_a_model_that_is_not_there_cannot_be_loaded(tmp_path: Path, servables: Servables, name: str) -> None:
    write_model(tmp_path / "outside" / "..", "outside")
    (tmp_path / "models").mkdir()
    repository = await opened(tmp_path / "models", servables)
    assert await fault(repository.load(name)) == (
        "internal",
        f"failed to load '{name}', failed to poll from model repository",
    )


async def test_a_configuration_that_is_none_is_told(tmp_path: Path, servables: Servables) -> None:
    for name, text in (("broken", "name: ["), ("other", CONFIG % ("another", "")), ("none", "")):
        write_model(tmp_path, name)
        (tmp_path / name / "config.pbtxt").write_text(text)
    (tmp_path / "none" / "config.pbtxt").unlink()
    repository = await opened(tmp_path, servables)
    for name, reason in (
        ("broken", "config.pbtxt"),
        ("other", "unexpected directory name 'other' for model 'another', directory name must equal model name"),
        ("none", "model configuration is not provided for model 'none'"),
    ):
        code, text = await fault(repository.load(name))
        assert code == "internal"
        assert text.startswith(f"failed to load '{name}', failed to poll from model repository: ")
        assert reason in text


async def test_a_policy_without_a_version_is_told(tmp_path: Path, servables: Servables) -> None:
    write_model(tmp_path, "a", more="version_policy { specific { versions: [ 7 ] } }")
    repository = await opened(tmp_path, servables)
    assert await fault(repository.load("a")) == (
        "invalid_argument",
        "load failed for model 'a': at least one version must be available under the version policy of model 'a'\n",
    )


async def test_loading_again_loads_only_what_has_changed(
    tmp_path: Path, servables: Servables, backend: MemoryBackend
) -> None:
    write_model(tmp_path, "a", versions=(1, 2), more="version_policy { all { } }")
    repository = await opened(tmp_path, servables, startup=("a",))
    await repository.load("a")
    assert [instance.version for instance in backend.instances] == [1, 2]
    (tmp_path / "a" / "2" / "weights").write_text("other weights")
    (tmp_path / "a" / "5").mkdir()
    await repository.load("a")
    assert [instance.version for instance in backend.instances] == [1, 2, 2, 5]
    write_model(tmp_path, "a", versions=(), more="version_policy { latest { num_versions: 1 } }")
    await repository.load("a")
    assert servables.versions("a") == [5]


async def test_a_version_that_cannot_be_replaced_goes_on_answering(
    tmp_path: Path, servables: Servables, backend: MemoryBackend
) -> None:
    write_model(tmp_path, "a")
    repository = await opened(tmp_path, servables, startup=("*",))
    (tmp_path / "a" / "1" / "weights").write_text("broken weights")
    backend.load_failures.append("bad magic")
    assert (await fault(repository.load("a")))[0] == "invalid_argument"
    assert (await servables.infer(request_of("a"))).version == 1
    await repository.load("a")
    assert len(backend.instances) == 2


async def test_a_request_may_bring_its_own_configuration_and_files(tmp_path: Path, servables: Servables) -> None:
    write_model(tmp_path, "a")
    repository = await opened(tmp_path, servables)
    document = {
        "backend": "memory",
        "input": [{"name": "X", "data_type": "TYPE_INT32", "dims": [3]}],
        "output": [{"name": "X", "data_type": "TYPE_INT32", "dims": [3]}],
    }
    await repository.load("a", config_override=document)
    assert servables.find("a").config.inputs[0].dims == (3,)
    await repository.load("new", config_override=json.dumps(document), files={"7/weights": b"w"})
    assert servables.versions("new") == [7]
    for files, override, reason in (
        ({"../../x": b""}, document, "leads out"),
        ({"1/x": b""}, None, "need a configuration"),
        ({}, "{", "not JSON"),
        ({}, {**document, "default_model_filename": "../x"}, "leads out"),
    ):
        assert reason in (await fault(repository.load("a", override, files)))[1]


async def test_polling_follows_the_folders(tmp_path: Path, servables: Servables, backend: MemoryBackend) -> None:
    write_model(tmp_path, "a")
    repository = await opened(tmp_path, servables, "poll", poll_s=3600.0)
    await repository.poll()
    assert len(backend.instances) == 1
    write_model(tmp_path, "b")
    (tmp_path / "a" / "2").mkdir()
    await repository.poll()
    await servables.settled()
    assert (servables.versions("a"), servables.versions("b")) == ([2], [1])
    (tmp_path / "b" / "config.pbtxt").write_text("?")
    await repository.poll()
    assert servables.versions("b") == [1]
    for file in ("config.pbtxt", "1/weights"):
        (tmp_path / "b" / file).unlink()
    for folder in ("b/1", "b"):
        (tmp_path / folder).rmdir()
    await repository.poll()
    assert servables.versions("b") == []
    await repository.close()


async def test_polling_does_not_try_a_broken_model_again_until_it_changes(
    tmp_path: Path, servables: Servables, backend: MemoryBackend
) -> None:
    write_model(tmp_path, "a")
    backend.load_failures += ["broken", "would not be tried"]
    repository = ModelRepository([tmp_path], servables, mode="poll", poll_s=3600.0)
    assert len(await repository.start()) == 1
    await repository.poll()
    assert backend.load_failures == ["would not be tried"]
    backend.load_failures.clear()
    (tmp_path / "a" / "1" / "weights").write_text("mended")
    await repository.poll()
    assert servables.versions("a") == [1]
    await repository.close()


async def test_loads_at_the_same_time_wait_for_each_other(
    tmp_path: Path, servables: Servables, backend: MemoryBackend
) -> None:
    write_model(tmp_path, "a")
    repository = await opened(tmp_path, servables)
    await asyncio.gather(*(repository.load("a") for _ in range(5)))
    assert len(backend.instances) == 1


async def test_a_model_may_load_another_while_it_is_loaded(
    tmp_path: Path, servables: Servables, backend: MemoryBackend
) -> None:
    write_model(tmp_path, "a")
    write_model(tmp_path, "b")
    repository = await opened(tmp_path, servables)
    load_plainly = backend.load

    async def load_and_ask(config, folder, group, number):  # type: ignore[no-untyped-def]  # a stand-in
        if config.name == "a":
            await repository.load("b")
            assert (await servables.infer(request_of("b"))).model == "b"
        return await load_plainly(config, folder, group, number)

    backend.load = load_and_ask  # type: ignore[method-assign]  # replaced for this test
    async with asyncio.timeout(10):
        await repository.load("a")
    assert servables.names() == ["a", "b"]


async def test_names_that_nobody_loaded_leave_nothing_behind(tmp_path: Path, servables: Servables) -> None:
    repository = await opened(tmp_path, servables)
    for number in range(100):
        await repository.unload(f"name-{number}")
        await servables.remove(f"name-{number}")
    assert not repository._locks
    assert not servables._load_locks
