"""Every decision that `resolve` takes, and every wish it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from millpond.api.model_spec import ModelSpec
from millpond.base.errors import ConfigError
from millpond.config.load import make_config
from millpond.config.resolve import Hardware, resolve, resolve_draft
from millpond.config.resolved import ResolvedConfig

SPEC = ModelSpec(
    family="llama",
    vocab_size=1000,
    hidden_size=64,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=32,
    intermediate_size=128,
    max_position=4096,
)
BLOCK_BYTES = 2 * 2 * 1 * 32 * 2 * 32  # k and v, layers, heads, dimensions, bfloat16, tokens
MACHINE = Hardware(native_isa="amx", cores=8, memory_available=16 << 30)


def decide(wishes: dict[str, object] | None = None, *, spec: ModelSpec = SPEC, **machine: object) -> ResolvedConfig:
    obstacle = str(machine.pop("obstacle", ""))
    hardware = replace(MACHINE, **machine)  # type: ignore[arg-type]
    return resolve(make_config(wishes or {}), spec, "models/tiny", hardware, obstacle)


def test_nothing_asked_for_takes_the_best_the_machine_has() -> None:
    got = decide()
    assert (got.executor, got.isa, got.dtype, got.threads) == ("native", "amx", "bfloat16", 8)
    assert got.deterministic
    assert got.enable_prefix_cache
    assert "amx" in got.dtype_reason
    assert got.model_name == "tiny"


def test_without_a_native_library_the_reference_runs_in_float32() -> None:
    got = decide(native_isa="none")
    assert (got.executor, got.isa, got.dtype, got.cache_dtype) == ("reference", "none", "float32", "float32")
    assert not got.deterministic


def test_a_shape_the_native_library_cannot_run_goes_to_the_reference() -> None:
    assert decide(obstacle="head dimension 20").executor == "reference"


def test_asking_for_native_where_it_cannot_run_is_refused_with_the_reason() -> None:
    with pytest.raises(ConfigError, match="head dimension 20"):
        decide({"runtime.executor": "native"}, obstacle="head dimension 20")


def test_an_instruction_set_can_be_capped_but_not_raised() -> None:
    assert decide({"runtime.isa": "avx2"}).isa == "avx2"
    with pytest.raises(ConfigError, match="cannot run amx"):
        decide({"runtime.isa": "amx"}, native_isa="avx512")


def test_the_cache_takes_a_quarter_of_free_memory_up_to_its_limit() -> None:
    assert decide(memory_available=1 << 30).num_blocks == (1 << 28) // BLOCK_BYTES
    assert decide(memory_available=1 << 40).num_blocks == (4 << 30) // BLOCK_BYTES


def test_a_small_cache_shortens_the_context_that_nobody_asked_for() -> None:
    got = decide({"cache.bytes": 10 * BLOCK_BYTES})
    assert (got.num_blocks, got.max_model_len) == (10, 320)


def test_a_context_asked_for_that_the_cache_cannot_hold_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Raise cache\.bytes"):
        decide({"cache.bytes": 10 * BLOCK_BYTES, "model.max_len": 2000})


def test_a_cache_below_two_blocks_is_refused() -> None:
    with pytest.raises(ConfigError, match="less than two blocks"):
        decide({"cache.bytes": BLOCK_BYTES})


def test_learned_positions_bound_the_context() -> None:
    with pytest.raises(ConfigError, match="4096 tokens only"):
        decide({"model.max_len": 5000}, spec=replace(SPEC, learned_positions=True))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("executor", ["native", "reference"])
def test_an_int8_cache_goes_with_every_dtype_and_holds_more_tokens_in_the_same_bytes(executor: str, dtype: str) -> None:
    wishes = {"model.dtype": dtype, "runtime.executor": executor, "cache.bytes": 100 * BLOCK_BYTES}
    plain, got = decide(wishes), decide(wishes | {"cache.dtype": "int8"})
    assert got.cache_dtype == "int8"
    token_bytes = SPEC.head_dim + 4  # of one head: the numbers and their scale
    assert got.num_blocks == 100 * BLOCK_BYTES // (2 * SPEC.num_layers * 32 * token_bytes) > 1.7 * plain.num_blocks


def test_a_model_of_8_bit_activations_keeps_its_cache_in_int8_unless_told_otherwise() -> None:
    assert decide({"model.dtype": "w8a8"}).cache_dtype == "int8"
    assert decide({"model.dtype": "w8a8", "cache.dtype": "auto"}).cache_dtype == "int8"
    assert decide({"model.dtype": "w8a8", "cache.dtype": "bfloat16"}).cache_dtype == "bfloat16"
    assert decide({"model.dtype": "int8"}).cache_dtype == "bfloat16"


def test_a_draft_model_keeps_its_cache_as_the_model_does() -> None:
    wishes = {"speculation.draft_model": "small", "cache.bytes": 100 * BLOCK_BYTES, "cache.dtype": "int8"}
    target = decide(wishes)
    got = resolve_draft(make_config(wishes), SPEC, target, MACHINE)
    assert (got.cache_dtype, got.num_blocks) == ("int8", target.num_blocks)


def test_a_cache_dtype_that_differs_from_the_activations_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cache\.dtype"):
        decide({"cache.dtype": "float32", "model.dtype": "bfloat16"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cache.block_size", 48),
        ("scheduler.max_batch_tokens", 3),
        ("scheduler.max_sequences", 0),
        ("scheduler.max_queue", 0),
        ("runtime.threads", 0),
        ("model.max_len", 0),
    ],
)
def test_a_number_out_of_range_names_its_setting(name: str, value: int) -> None:
    with pytest.raises(ConfigError) as caught:
        decide({name: value})
    assert caught.value.param == name


def test_a_seed_is_kept_and_otherwise_drawn() -> None:
    assert decide({"runtime.seed": 5}).seed == 5
    assert decide().seed != decide().seed


def test_guesses_come_from_the_text_where_they_change_no_token() -> None:
    assert (decide().speculation, decide().speculation_max_tokens) == ("ngram", 8)
    assert decide(native_isa="none").speculation == "off"
    assert decide({"speculation.mode": "ngram"}, native_isa="none").speculation == "ngram"
    assert decide({"speculation.mode": "off", "speculation.draft_model": "small"}).speculation == "off"


def test_a_draft_model_gets_as_many_blocks_and_no_longer_sequences_than_it_knows() -> None:
    wishes = {"speculation.draft_model": "small", "cache.bytes": 100 * BLOCK_BYTES, "runtime.seed": 1}
    target = decide(wishes)
    small = replace(SPEC, num_layers=1, max_position=512)
    got = resolve_draft(make_config(wishes), small, target, MACHINE)
    assert (got.num_blocks, got.block_size, got.max_model_len) == (target.num_blocks, target.block_size, 512)
    assert (got.model_path, got.speculation, got.executor) == ("small", "off", target.executor)
    assert (got.max_batch_tokens, got.max_sequences) == (target.max_batch_tokens, target.max_sequences)
    assert not target.rejects_drafts
    assert decide().rejects_drafts


@pytest.mark.parametrize(("asked", "got"), [({}, "w8a8"), ({"speculation.draft_dtype": "bfloat16"}, "bfloat16")])
def test_a_draft_model_has_the_models_dtype_or_its_own(asked: dict[str, object], got: str) -> None:
    wishes = {"speculation.draft_model": "small", "cache.bytes": 100 * BLOCK_BYTES, "model.dtype": "w8a8"} | asked
    target = decide(wishes)
    assert target.dtype == "w8a8"
    assert resolve_draft(make_config(wishes), SPEC, target, MACHINE).dtype == got


def test_a_draft_model_is_used_when_one_is_given() -> None:
    got = decide({"speculation.draft_model": "small"})
    assert (got.speculation, got.draft_model_path) == ("draft", "small")


@pytest.mark.parametrize(
    "wishes",
    [
        {"speculation.mode": "draft"},
        {"speculation.draft_dtype": "int4"},
        {"speculation.mode": "ngram", "speculation.draft_model": "small"},
        {"speculation.max_tokens": 65},
    ],
)
def test_speculation_that_makes_no_sense_is_refused(wishes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="speculation"):
        decide(wishes)
