"""The block pool: holds, the order of reuse, and content that stays until it is reused."""

from __future__ import annotations

import pytest

from millpond.base.errors import ConfigError
from millpond.inference.kv import BlockPool


def key(number: int) -> bytes:
    return number.to_bytes(32, "little")


def test_allocates_every_block_once() -> None:
    pool = BlockPool(4, 32)
    assert sorted(pool.allocate(4)) == [0, 1, 2, 3]
    assert pool.num_free == 0


def test_allocating_more_than_is_free_changes_nothing() -> None:
    pool = BlockPool(2, 32)
    with pytest.raises(RuntimeError, match="3 blocks asked for, 2 free"):
        pool.allocate(3)
    pool.check_integrity()
    assert pool.num_free == 2


def test_allocating_nothing_is_possible_in_a_full_pool() -> None:
    pool = BlockPool(1, 32)
    pool.allocate(1)
    assert pool.allocate(0) == []
    pool.check_integrity()


def test_block_is_free_when_its_last_holder_leaves() -> None:
    pool = BlockPool(2, 32)
    blocks = pool.allocate(1)
    pool.acquire(blocks)
    pool.free(blocks)
    assert pool.num_free == 1
    pool.free(blocks)
    assert pool.num_free == 2


def test_freeing_twice_is_refused() -> None:
    pool = BlockPool(2, 32)
    blocks = pool.allocate(1)
    pool.free(blocks)
    with pytest.raises(RuntimeError, match="freed twice"):
        pool.free(blocks)


def test_free_block_keeps_its_content_until_it_is_reused() -> None:
    pool = BlockPool(2, 32)
    (block,) = pool.allocate(1)
    pool.name(block, key(1))
    pool.free([block])
    assert pool.find(key(1)) == block
    pool.allocate(2)
    assert pool.find(key(1)) is None
    assert pool.key_of(block) is None


def test_acquiring_a_free_block_takes_it_off_the_free_list() -> None:
    pool = BlockPool(3, 32)
    block, other = pool.allocate(2)
    pool.name(block, key(1))
    pool.free([block, other])
    pool.acquire([block])
    assert block not in pool.allocate(2)
    assert pool.find(key(1)) == block


def test_least_recently_freed_content_goes_first() -> None:
    pool = BlockPool(3, 32)
    first, second, third = pool.allocate(3)
    for block in (first, second, third):
        pool.name(block, key(block))
    for block in (second, first, third):
        pool.free([block])
    assert [pool.allocate(1)[0] for _ in range(3)] == [second, first, third]


def test_end_of_a_chain_goes_before_its_beginning() -> None:
    pool = BlockPool(3, 32)
    chain = pool.allocate(3)
    for block in chain:
        pool.name(block, key(block))
    pool.free(chain)
    assert [pool.allocate(1)[0] for _ in range(3)] == chain[::-1]


def test_blocks_without_content_go_before_any_content() -> None:
    pool = BlockPool(3, 32)
    named, unnamed, _ = pool.allocate(3)
    pool.name(named, key(1))
    pool.free([named])
    pool.free([unnamed])
    assert pool.allocate(1) == [unnamed]


def test_acquired_again_and_freed_is_most_recent() -> None:
    pool = BlockPool(2, 32)
    first, second = pool.allocate(2)
    pool.name(first, key(1))
    pool.name(second, key(2))
    pool.free([first])
    pool.free([second])
    pool.acquire([first])
    pool.free([first])
    assert pool.allocate(1) == [second]


def test_second_block_with_the_same_content_stays_nameless() -> None:
    pool = BlockPool(2, 32)
    first, second = pool.allocate(2)
    assert pool.name(first, key(1))
    assert not pool.name(second, key(1))
    assert pool.find(key(1)) == first
    assert pool.key_of(second) is None
    pool.check_integrity()


def test_a_name_never_changes() -> None:
    pool = BlockPool(1, 32)
    (block,) = pool.allocate(1)
    pool.name(block, key(1))
    assert not pool.name(block, key(2))
    assert pool.find(key(2)) is None


@pytest.mark.parametrize(("num_tokens", "num_blocks"), [(0, 0), (1, 1), (32, 1), (33, 2)])
def test_counts_the_blocks_that_tokens_need(num_tokens: int, num_blocks: int) -> None:
    assert BlockPool(1, 32).blocks_for(num_tokens) == num_blocks


@pytest.mark.parametrize(("num_blocks", "block_size"), [(0, 32), (4, 0)])
def test_empty_pool_is_a_config_error(num_blocks: int, block_size: int) -> None:
    with pytest.raises(ConfigError):
        BlockPool(num_blocks, block_size)


def test_integrity_check_sees_a_lost_block() -> None:
    pool = BlockPool(2, 32)
    pool.allocate(1)
    pool.num_free += 1
    with pytest.raises(AssertionError, match="free list"):
        pool.check_integrity()
