"""Names and paths of models, without fetching any."""

from __future__ import annotations

from pathlib import Path

import pytest

from millpond.base.errors import ConfigError, FetchError
from millpond.config import env
from millpond.inference.weights import catalog


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MILLPOND_CACHE", str(tmp_path / "empty"))


def test_a_path_that_exists_is_itself(tmp_path: Path) -> None:
    assert catalog.resolve_model(str(tmp_path)) == str(tmp_path)


def test_a_name_in_the_cache_is_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = catalog.CATALOG[0]
    path = env.cache_dir() / "models" / entry.name / entry.file_name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"as if it were the model")
    monkeypatch.setattr("millpond.inference.weights.fetch._is_stamped", lambda *_: True)
    assert catalog.resolve_model("SmolLM2-135M") == str(path)


def test_no_name_is_the_default_model() -> None:
    with pytest.raises(FetchError, match="smollm2-135m is not in the cache"):
        catalog.resolve_model(None, offline=True)


def test_the_environment_can_forbid_fetching(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLPOND_OFFLINE", "1")
    with pytest.raises(FetchError, match="gemma3-270m is not in the cache"):
        catalog.pull("gemma3-270m")


def test_a_mistyped_name_gets_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'smollm2-135m'"):
        catalog.resolve_model("smolm2-135m")


def test_the_list_has_every_name_and_no_path_before_the_fetch() -> None:
    rows = catalog.list_models()
    assert [row.name for row in rows] == ["smollm2-135m", "gemma3-270m"]
    assert [row.path for row in rows] == [None, None]


def test_a_model_with_terms_of_its_own_says_so() -> None:
    assert "Gemma Terms of Use" in catalog.list_models()[1].licence


def test_every_entry_is_pinned_by_version_and_digest() -> None:
    for entry in catalog.CATALOG:
        assert len(entry.sha256) == 64
        for part in entry.parts:
            assert "==" in part.requirement
            assert len(part.sha256) == 64
