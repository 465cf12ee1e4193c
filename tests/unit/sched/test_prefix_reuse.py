"""Prefix hits: what is taken from the cache, what is computed once for many, and who may share."""

from __future__ import annotations

from tests.sim.toy_engine import ToyEngine, make_sequence

PROMPT = list(range(14))  # three full blocks of four, and two tokens


def computed_for(engine: ToyEngine, seq_id: int) -> int:
    return sum(entry.num_tokens for plan in engine.plans for entry in plan.entries if entry.seq.seq_id == seq_id)


def test_second_equal_prompt_computes_only_its_last_block() -> None:
    engine = ToyEngine()
    engine.add(make_sequence(0, PROMPT, 1))
    engine.run()
    engine.add(make_sequence(1, PROMPT, 1))
    engine.run()
    assert engine.added[1].num_cached_tokens == 12
    assert computed_for(engine, 1) == 2
    engine.check_outputs()


def test_hit_never_covers_the_last_known_token() -> None:
    engine = ToyEngine()
    for seq_id in range(2):
        engine.add(make_sequence(seq_id, PROMPT[:12], 1))
        engine.run()
    assert engine.added[1].num_cached_tokens == 8
    engine.check_outputs()


def test_generated_tokens_are_found_by_the_next_turn() -> None:
    engine = ToyEngine()
    engine.add(make_sequence(0, PROMPT, 11))
    engine.run()
    engine.add(make_sequence(1, [*engine.added[0].token_ids, 1, 2], 1))
    engine.run()
    assert engine.added[1].num_cached_tokens == 24
    engine.check_outputs()


def test_tenants_do_not_share() -> None:
    engine = ToyEngine()
    engine.add(make_sequence(0, PROMPT, 1, cache_salt="one"))
    engine.run()
    engine.add(make_sequence(1, PROMPT, 1, cache_salt="two"))
    engine.run()
    assert engine.added[1].num_cached_tokens == 0


def test_nothing_is_shared_with_the_prefix_cache_off() -> None:
    engine = ToyEngine(enable_prefix=False)
    for seq_id in range(2):
        engine.add(make_sequence(seq_id, PROMPT, 1))
        engine.run()
    assert engine.added[1].num_cached_tokens == 0
    assert engine.scheduler.stats().prefix_query_tokens_total == 0


def test_prompt_logits_need_every_prompt_token_computed() -> None:
    engine = ToyEngine()
    for seq_id in range(2):
        engine.add(make_sequence(seq_id, PROMPT, 1, needs_prompt_logits=True))
        engine.run()
    assert computed_for(engine, 1) == 14


def test_prompt_with_logits_delivered_may_resume_from_the_cache() -> None:
    engine = ToyEngine(num_blocks=10, block_size=4)
    engine.add(make_sequence(0, [1] * 8, 26))
    engine.add(make_sequence(1, [2] * 8, 14, needs_prompt_logits=True))
    engine.run()
    assert engine.added[1].num_preemptions > 0
    starts = [entry.start for plan in engine.plans for entry in plan.entries if entry.seq.seq_id == 1]
    assert starts.count(0) == 1
    engine.check_outputs()


def test_siblings_wait_for_the_first_one_s_prompt() -> None:
    engine = ToyEngine(max_batch_tokens=32)
    engine.add(*(make_sequence(seq_id, PROMPT, 3, request_id="r", index=seq_id) for seq_id in range(4)))
    assert [entry.seq.seq_id for entry in engine.step().entries] == [0]
    assert len(engine.step().entries) == 4
    engine.run()
    assert [computed_for(engine, seq_id) for seq_id in range(4)] == [14 + 2, 2 + 2, 2 + 2, 2 + 2]
    engine.check_outputs()


def test_siblings_of_a_chunked_prompt_wait_for_all_of_it() -> None:
    engine = ToyEngine(max_batch_tokens=4)
    engine.add(*(make_sequence(seq_id, PROMPT, 1, request_id="r", index=seq_id) for seq_id in range(2)))
    for _ in range(3):
        assert [entry.seq.seq_id for entry in engine.step().entries] == [0]
    engine.run()
    assert computed_for(engine, 1) == 2


def test_sibling_starts_by_itself_when_the_first_one_is_cancelled() -> None:
    engine = ToyEngine(max_batch_tokens=4)
    engine.add(*(make_sequence(seq_id, PROMPT, 1, request_id="r", index=seq_id) for seq_id in range(2)))
    engine.step(meanwhile=lambda: engine.cancel(0))
    engine.run()
    assert computed_for(engine, 1) == 14 - 4
    engine.check_outputs()


def test_others_pass_a_sequence_that_waits_for_a_prefix() -> None:
    engine = ToyEngine(max_batch_tokens=32)
    engine.add(make_sequence(0, PROMPT, 1))
    engine.add(make_sequence(1, PROMPT, 1))
    engine.add(make_sequence(2, [9] * 5, 1))
    assert [entry.seq.seq_id for entry in engine.step().entries] == [0, 2]


def test_urgent_sequence_does_not_wait_for_a_lower_class() -> None:
    engine = ToyEngine(max_batch_tokens=4)
    engine.add(make_sequence(0, PROMPT, 1, priority=1))
    engine.step()
    engine.add(make_sequence(1, PROMPT, 1, priority=0))
    assert [entry.seq.seq_id for entry in engine.step().entries] == [1]


def test_sequence_with_another_prefix_does_not_wait() -> None:
    engine = ToyEngine(max_batch_tokens=32)
    engine.add(make_sequence(0, PROMPT, 1))
    engine.add(make_sequence(1, [*PROMPT[:3], 16, *PROMPT[4:]], 1))
    assert len(engine.step().entries) == 2


def test_prompts_shorter_than_a_block_do_not_wait() -> None:
    engine = ToyEngine()
    engine.add(*(make_sequence(seq_id, [1, 2, 3], 1, request_id="r", index=seq_id) for seq_id in range(3)))
    assert len(engine.step().entries) == 3


def test_each_block_is_hashed_once_a_sequence(monkeypatch) -> None:
    engine = ToyEngine(num_blocks=8, block_size=4)
    hasher = engine.cache.prefix.hasher
    counts: dict[bytes, int] = {}
    block_key = type(hasher).block_key

    def count(self, parent, token_ids):
        key = block_key(self, parent, token_ids)
        counts[key] = counts.get(key, 0) + 1
        return key

    monkeypatch.setattr(type(hasher), "block_key", count)
    for seq_id in range(3):
        engine.add(make_sequence(seq_id, [seq_id] * 4, 20))
    engine.run()
    assert engine.num_preempted > 0
    assert set(counts.values()) == {1}
