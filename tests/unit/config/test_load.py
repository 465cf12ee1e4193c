from __future__ import annotations

from pathlib import Path

import pytest

from millpond.base.errors import ConfigError
from millpond.config.load import dump_config, load_config, make_config
from millpond.config.schema import EngineConfig


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "millpond.toml"
    path.write_text(text)
    return path


def test_nothing_given_leaves_everything_open() -> None:
    assert load_config(environment={}) == EngineConfig()


def test_file_sets_values(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, '[cache]\ndtype = "bfloat16"\nprefix = false\n'), environment={})
    assert (config.cache.dtype, config.cache.prefix) == ("bfloat16", False)


def test_environment_wins_over_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "[scheduler]\nmax_queue = 5\n")
    assert load_config(file, environment={"MILLPOND_SCHEDULER_MAX_QUEUE": "7"}).scheduler.max_queue == 7


def test_flags_win_over_the_environment() -> None:
    config = load_config(environment={"MILLPOND_SERVE_PORT": "81"}, flags={"serve.port": "82"})
    assert config.serve.port == 82


def test_a_flag_that_was_not_given_changes_nothing() -> None:
    config = load_config(environment={"MILLPOND_SERVE_PORT": "81"}, flags={"serve.port": None})
    assert config.serve.port == 81


def test_file_named_by_the_environment_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLPOND_CONFIG", str(write(tmp_path, "[runtime]\nseed = 3\n")))
    assert load_config().runtime.seed == 3


@pytest.mark.parametrize(("text", "size"), [("4GiB", 4 << 30), ("1.5 MiB", 3 << 19), ("1000000", 10**6), ("2k", 2048)])
def test_a_size_may_carry_a_unit(text: str, size: int) -> None:
    assert make_config({"cache.bytes": text}).cache.bytes == size


@pytest.mark.parametrize(("text", "value"), [("on", True), ("False", False), ("1", True), ("no", False)])
def test_words_for_true_and_false(text: str, value: bool) -> None:
    assert load_config(environment={"MILLPOND_CACHE_PREFIX": text}).cache.prefix is value


def test_a_whole_number_serves_as_a_number() -> None:
    assert make_config({"serve.drain_timeout_s": 5}).serve.drain_timeout_s == 5.0


@pytest.mark.parametrize(
    ("text", "message", "fix"),
    [
        ('[cahce]\ndtype = "auto"\n', "The section [cahce]", "'cache'"),
        ("[cache]\nblok_size = 32\n", "cache.blok_size", "'block_size'"),
        ('[model]\ndtype = "bfloat"\n', "'bfloat' is not one of auto, float32, bfloat16, int8", "'bfloat16'"),
        ("max_queue = 5\n", "stands in no section", "'scheduler.max_queue'"),
        ("cache = 5\n", "must be a section", "[cache]"),
        ("[cache\n", "is not valid TOML", "that line"),
        ("[cache]\nblock_size = true\n", "cache.block_size", "Tokens in a block"),
        ("[cache]\nblock_size = 32.0\n", "32.0 is not a whole number", "Tokens in a block"),
        ('[cache]\nbytes = "many"\n', "'many' is not a size", "KV cache"),
        ("[serve]\nport = 70000\n", "70000 is above 65535", "Port"),
        ("[serve]\nrequest_timeout_s = nan\n", "nan is below 0", "seconds"),
        ("[model]\npath = 3\n", "3 is not text", "Directory"),
    ],
)
def test_a_wrong_file_says_where_and_what_to_write(tmp_path: Path, text: str, message: str, fix: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(write(tmp_path, text), environment={})
    assert message in raised.value.message
    assert fix in raised.value.fix


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml cannot be read: No such file"):
        load_config(tmp_path / "nowhere.toml", environment={})


def test_a_wrong_value_names_its_setting() -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(environment={"MILLPOND_RUNTIME_THREADS": "two"})
    assert raised.value.param == "runtime.threads"
    assert "MILLPOND_RUNTIME_THREADS" in raised.value.message


def test_an_unknown_setting_is_an_error_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"Did you mean 'cache\.dtype'"):
        make_config({"cache.dtyp": "auto"})


def test_dump_shows_only_what_was_asked_for() -> None:
    assert dump_config(make_config({"cache.dtype": "float32", "serve.port": 1})) == {
        "cache": {"dtype": "float32"},
        "serve": {"port": 1},
    }


def test_a_dumped_config_loads_back() -> None:
    config = make_config({"cache.bytes": "1GiB", "model.path": "here", "runtime.deterministic": True})
    paths = {f"{section}.{key}": value for section, keys in dump_config(config).items() for key, value in keys.items()}
    assert make_config(paths) == config
