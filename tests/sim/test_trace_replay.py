"""Requests of the form of a published serving trace, run through the scheduler: hit rates as a brute force counts them.

A line has a time in ms, lengths, and one id for every 512 prompt tokens, equal ids meaning equal tokens with everything
before them equal too. The lines here are made up in that form: conversations that come back with a longer prompt, and a
system prompt that all share.
"""

from __future__ import annotations

import json
import random

import pytest

from millpond.inference.sched import Sequence
from tests.sim.toy_engine import ToyEngine, make_sequence

TRACE_BLOCK = 512
BLOCK = 8  # a trace block is scaled down to one block of this many tokens


def make_trace(num_requests: int, seed: int, missing: tuple[int, ...] = (0, 1, 100, 300)) -> list[str]:
    """JSON lines as in the trace; a prompt lacks one of `missing` tokens of its last block."""
    draw = random.Random(seed)
    fresh = iter(range(1, 1_000_000))
    conversations: list[list[int]] = []
    lines = []
    for number in range(num_requests):
        if conversations and draw.random() < 0.5:
            hash_ids = draw.choice(conversations)
            hash_ids.extend(next(fresh) for _ in range(draw.randrange(1, 3)))
        else:
            hash_ids = [0, *(next(fresh) for _ in range(draw.randrange(0, 5)))]
            conversations.append(hash_ids)
        input_length = len(hash_ids) * TRACE_BLOCK - draw.choice(missing)
        line = {"timestamp": number * 300, "input_length": input_length, "output_length": draw.randrange(1, 600)}
        lines.append(json.dumps({**line, "hash_ids": list(hash_ids)}))
    return lines


def to_sequence(seq_id: int, line: str) -> Sequence:
    """The request with `BLOCK` tokens for every 512; an id stands for its own tokens."""
    fields = json.loads(line)
    tokens = [hash_id * BLOCK + offset for hash_id in fields["hash_ids"] for offset in range(BLOCK)]
    num_tokens = -(-fields["input_length"] * BLOCK // TRACE_BLOCK)
    output = max(1, fields["output_length"] * BLOCK // TRACE_BLOCK)
    return make_sequence(seq_id, tokens[:num_tokens], output, arrival_s=fields["timestamp"] / 1000)


def common_blocks(first: list[int], second: list[int]) -> int:
    count = 0
    while count < min(len(first), len(second)) and first[count] == second[count]:
        count += 1
    return count // BLOCK


def hits_without_limit(sequences: list[Sequence], outputs: dict[int, list[int]]) -> list[int]:
    """Hit tokens of requests one at a time in an endless cache, by comparing every prompt with everything before."""
    seen: list[list[int]] = []
    hits = []
    for seq in sequences:
        best = max((common_blocks(seq.prompt_token_ids, other) for other in seen), default=0)
        hits.append(min(best, (len(seq.prompt_token_ids) - 1) // BLOCK) * BLOCK)
        seen.append(seq.prompt_token_ids + outputs[seq.seq_id][:-1])  # the last token is never computed
    return hits


def hits_with_limit(sequences: list[Sequence], outputs: dict[int, list[int]], num_blocks: int) -> list[int]:
    """The same in a cache of `num_blocks`, as one list of prefixes, least recently used first."""
    recency: list[tuple[int, ...]] = []
    hits = []
    for seq in sequences:
        prompt, computed = seq.prompt_token_ids, seq.prompt_token_ids + outputs[seq.seq_id][:-1]
        count = 0
        while (count + 1) * BLOCK < len(prompt) and tuple(prompt[: (count + 1) * BLOCK]) in recency:
            count += 1
        hits.append(count * BLOCK)
        held = [tuple(computed[: (index + 1) * BLOCK]) for index in range(len(computed) // BLOCK)]
        # Held blocks leave the list; new ones, and a last one that is not full, push out whatever is oldest. A last
        # block that was there but had to be computed again stays where it is: the new copy gets no name.
        for prefix in held[:count]:
            recency.remove(prefix)
        num_held = -(-len(computed) // BLOCK)
        while recency and len(recency) + num_held > num_blocks:
            recency.pop(0)
        recency += [prefix for prefix in reversed(held) if prefix not in recency]
    return hits


def run_one_at_a_time(lines: list[str], num_blocks: int) -> tuple[list[Sequence], dict[int, list[int]]]:
    engine = ToyEngine(num_blocks=num_blocks, block_size=BLOCK, max_batch_tokens=64, max_model_len=2000)
    sequences = [to_sequence(seq_id, line) for seq_id, line in enumerate(lines)]
    for seq in sequences:
        engine.add(seq)
        engine.run()
    engine.check_outputs()
    return sequences, {seq.seq_id: seq.output_token_ids for seq in sequences}


def test_hit_rate_in_a_large_cache_is_that_of_an_endless_one() -> None:
    sequences, outputs = run_one_at_a_time(make_trace(80, seed=1), num_blocks=1000)
    hits = [seq.num_cached_tokens for seq in sequences]
    assert hits == hits_without_limit(sequences, outputs)
    assert sum(hits) > 0.3 * sum(seq.num_prompt_tokens for seq in sequences)


@pytest.mark.parametrize("num_blocks", [24, 48, 96])
def test_hit_rate_in_a_small_cache_is_that_of_least_recently_used(num_blocks: int) -> None:
    sequences, outputs = run_one_at_a_time(make_trace(80, seed=2), num_blocks)
    hits = [seq.num_cached_tokens for seq in sequences]
    assert hits == hits_with_limit(sequences, outputs, num_blocks)
    assert 0 < sum(hits) < sum(hits_without_limit(sequences, outputs))


def test_requests_that_arrive_together_compute_every_prefix_once() -> None:
    engine = ToyEngine(num_blocks=1000, block_size=BLOCK, max_batch_tokens=64, max_queue=200, max_model_len=2000)
    sequences = [to_sequence(seq_id, line) for seq_id, line in enumerate(make_trace(80, seed=3, missing=(100, 300)))]
    for seq in sequences:
        engine.add(seq)
    engine.run()
    engine.check_outputs()
    prefixes = set()
    rest = 0
    for seq in sequences:
        whole = (seq.num_prompt_tokens - 1) // BLOCK
        prefixes |= {tuple(seq.prompt_token_ids[: (index + 1) * BLOCK]) for index in range(whole)}
        rest += seq.num_prompt_tokens - whole * BLOCK + len(seq.output_token_ids) - 1
    assert engine.executor.num_computed == len(prefixes) * BLOCK + rest


def test_hit_rate_of_requests_in_time_lies_between_none_and_one_at_a_time() -> None:
    lines = make_trace(80, seed=4)
    alone, _ = run_one_at_a_time(lines, num_blocks=1000)
    engine = ToyEngine(num_blocks=60, block_size=BLOCK, max_batch_tokens=32, max_queue=200, max_model_len=2000)
    waiting = [to_sequence(seq_id, line) for seq_id, line in enumerate(lines)]
    arrivals = list(waiting)
    while arrivals or engine.scheduler.has_work:
        while arrivals and arrivals[0].arrival_s <= engine.now_s:
            engine.add(arrivals.pop(0))
        engine.step()
    engine.check_outputs()
    stats = engine.scheduler.stats()
    assert 0 < stats.prefix_hit_tokens_total <= sum(seq.num_cached_tokens for seq in alone)
