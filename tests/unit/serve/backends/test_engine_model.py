"""What an engine behind a servable is started with."""

from __future__ import annotations

from pathlib import Path

import pytest

from millpond.base.errors import ContextLengthError, QueueFullError
from millpond.config.load import make_config
from millpond.serve.backends.engine_model import as_servable_error, engine_config, find_model, settings_of
from millpond.serve.servables.backend import ModelFolder
from millpond.serve.servables.config import ServableConfig
from millpond.serve.servables.errors import ServableError


def test_a_model_shares_the_machines_settings_and_not_another_models() -> None:
    base = make_config({"model.path": "a", "model.max_len": 7, "runtime.threads": 2, "cache.bytes": 1 << 20})

    config = engine_config(base, {"model.path": "b", "cache.bytes": "2MiB"}, "named")

    assert (config.model.path, config.model.max_len, config.model.served_name) == ("b", None, "named")
    assert (config.runtime.threads, config.cache.bytes) == (2, 2 << 20)


def test_a_wrong_setting_names_the_model() -> None:
    config = ServableConfig("m", "llm", (), (), parameters={"millpond.cache.byte": "1", "other": "2"})

    with pytest.raises(ServableError, match=r"Model 'm': .*cache\.byte.*cache\.bytes"):
        engine_config(make_config({}), settings_of(config), "m")


def test_a_model_beside_the_version_is_found_and_none_outside_of_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "repository" / "m"
    for path in (folder / "1" / "near", folder / "beside", tmp_path / "repository" / "other"):
        path.mkdir(parents=True)
    version = ModelFolder(folder, 1)

    assert find_model("near", version) == str(folder / "1" / "near")
    assert find_model("beside", version) == str(folder / "beside")
    assert find_model("../other", version) == "../other"
    assert find_model("smollm2-135m", version) == "smollm2-135m"
    assert find_model("/models/x", version) == "/models/x"


def test_errors_of_the_engine_keep_their_kind_and_when_to_come_again() -> None:
    full = as_servable_error(QueueFullError("full", retry_after_s=3.0))
    long = as_servable_error(ContextLengthError("long", fix="Shorten."))

    assert (full.code, full.retry_after_s) == ("unavailable", 3.0)
    assert (long.code, long.message, long.retry_after_s) == ("invalid_argument", "long Shorten.", None)
