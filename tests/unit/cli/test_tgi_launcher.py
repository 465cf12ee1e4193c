"""The flags of TGI's launcher: what each is here, and that none is left out."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from millpond.base.errors import ConfigError
from millpond.cli.serve import serve
from millpond.cli.tgi_flags import FLAGS, LauncherFlag, map_flags
from millpond.cli.tgi_launcher import launcher_config, launcher_variables, text_generation_launcher
from millpond.config.schema import EngineConfig

# The options of text-generation-launcher 3.3, as its own help lists them.
KNOWN = """
model-id revision validation-workers sharded num-shard quantize speculate dtype kv-cache-dtype trust-remote-code
max-concurrent-requests max-best-of max-stop-sequences max-top-n-tokens max-input-tokens max-input-length
max-total-tokens waiting-served-ratio max-batch-prefill-tokens max-batch-total-tokens max-waiting-tokens max-batch-size
cuda-graphs hostname port prometheus-port shard-uds-path master-addr master-port huggingface-hub-cache
weights-cache-override disable-custom-kernels cuda-memory-fraction rope-scaling rope-factor json-output otlp-endpoint
otlp-service-name cors-allow-origin api-key watermark-gamma watermark-delta ngrok ngrok-authtoken ngrok-edge
tokenizer-config-path disable-grammar-support max-client-batch-size lora-adapters usage-stats payload-limit
enable-prefill-logprobs graceful-termination-timeout
"""


def test_every_flag_of_the_launcher_is_a_setting_or_idle_or_refused() -> None:
    assert sorted(flag.name for flag in FLAGS) == sorted(KNOWN.split())
    assert all(flag.settings or flag.idle or flag.refused for flag in FLAGS)


@pytest.mark.parametrize("flag", [flag for flag in FLAGS if flag.settings], ids=lambda flag: flag.name)
def test_a_flag_with_a_setting_sets_it(flag: LauncherFlag) -> None:
    value = next(iter(flag.words), "7")
    mapped = map_flags({flag.name: value})
    expected = flag.words.get(value, value)
    assert mapped.settings == dict.fromkeys(flag.settings, expected)
    launcher_config({flag.name: value}, EngineConfig())


@pytest.mark.parametrize("name", [flag.name for flag in FLAGS if flag.idle])
def test_an_idle_flag_says_why_it_changes_nothing(name: str) -> None:
    mapped = map_flags({name: "true"})
    assert mapped.settings == {}
    assert mapped.notices[0].startswith(f"--{name} changes nothing: ")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("revision", "refs/pr/2"),
        ("quantize", "gptq"),
        ("dtype", "int4"),
        ("kv-cache-dtype", "fp8_e5m2"),
        ("rope-scaling", "linear"),
        ("lora-adapters", "mine"),
        ("ngrok", "true"),
        ("tokenizer-config-path", "x.json"),
    ],
)
def test_what_cannot_be_served_is_refused_with_its_reason(name: str, value: str) -> None:
    with pytest.raises(click.UsageError, match=f"--{name} {value} cannot be served: "):
        map_flags({name: value})


def test_values_that_ask_for_nothing_pass() -> None:
    assert map_flags({"revision": "main", "ngrok": "false", "speculate": "0"}).settings == {}


def test_the_launcher_turns_its_port_on_and_reads_its_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [flag.variable for flag in FLAGS]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MAX_BEST_OF", "3")
    monkeypatch.setenv("HOSTNAME", "0.0.0.0")  # a container's name, no address to bind
    assert launcher_variables() == {"max-best-of": "3"}
    config = launcher_config(launcher_variables(), EngineConfig())
    assert (config.tgi.port, config.tgi.max_best_of, config.tgi.host) == (3000, 3, None)
    assert launcher_config({"port": "81", "hostname": "::"}, EngineConfig()).tgi.port == 81


def test_a_value_that_does_not_fit_says_which_setting_it_is() -> None:
    with pytest.raises(ConfigError, match=r"tgi\.max_best_of"):
        launcher_config({"max-best-of": "many"}, EngineConfig())


def test_help_version_and_refusals_come_before_anything_starts() -> None:
    runner = CliRunner()
    assert "--max-batch-prefill-tokens" in runner.invoke(text_generation_launcher, ["--help"]).output
    assert runner.invoke(text_generation_launcher, ["-V"]).output.startswith("text-generation-launcher (millpond ")
    assert "Python" in runner.invoke(text_generation_launcher, ["-e"]).output
    refused = runner.invoke(text_generation_launcher, ["--lora-adapters", "mine"])
    assert refused.exit_code == 2
    assert "--lora-adapters mine cannot be served" in refused.output


def test_a_repository_alone_has_nothing_that_the_tgi_port_could_speak_for(tmp_path: Path) -> None:
    refused = CliRunner().invoke(serve, ["--repository", str(tmp_path), "--tgi.port", "0"])
    assert refused.exit_code == 2
    assert "give MODEL" in refused.output


def test_compat_reads_the_launchers_variables_and_refuses_what_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORA_ADAPTERS", "mine")
    refused = CliRunner().invoke(serve, ["--tgi-compat"])
    assert refused.exit_code == 2
    assert "--lora-adapters mine cannot be served" in refused.output


def test_millponds_own_flags_win_over_the_launchers_variables() -> None:
    config = launcher_config({"port": "81", "max-best-of": "3"}, EngineConfig(), {"tgi.port"})
    assert (config.tgi.port, config.tgi.max_best_of) == (None, 3)
