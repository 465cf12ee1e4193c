"""Names of blocks, and the search for the longest computed prefix."""

from __future__ import annotations

import hashlib
import random

import pytest

from millpond.inference.kv import BlockHasher, BlockPool, KVCache, PrefixCache

IDENTITY = {
    "block_size": 4,
    "weights_digest": "w",
    "dtype": "bfloat16",
    "adapter_digest": "a",
    "layout_version": 1,
    "shard": "0/1",
}


def make_hasher(**changes: object) -> BlockHasher:
    return BlockHasher(**{**IDENTITY, **changes})  # type: ignore[arg-type]


def keys_of(hasher: BlockHasher, token_ids: list[int], salt: str = "") -> list[bytes]:
    keys: list[bytes] = []
    hasher.extend(keys, token_ids, salt)
    return keys


def make_cache(num_blocks: int = 16) -> tuple[BlockPool, PrefixCache]:
    pool = BlockPool(num_blocks, 4)
    return pool, PrefixCache(pool, make_hasher())


def store(pool: BlockPool, cache: PrefixCache, token_ids: list[int], salt: str = "") -> list[int]:
    """Computes a prompt from nothing, as a sequence would."""
    keys = keys_of(cache.hasher, token_ids, salt)
    block_ids = pool.allocate(len(keys))
    for block_id, key in zip(block_ids, keys, strict=True):
        cache.register(block_id, key)
    return block_ids


def test_name_is_the_documented_hash() -> None:
    def field(tag: bytes, value: bytes) -> bytes:
        return bytes([len(tag)]) + len(value).to_bytes(8, "little") + tag + value

    identity = b"millpond.kv/1" + b"".join(
        field(tag, value)
        for tag, value in [
            (b"weights", b"w"),
            (b"adapter", b"a"),
            (b"dtype", b"bfloat16"),
            (b"layout", b"1"),
            (b"block_size", b"4"),
            (b"shard", b"0/1"),
        ]
    )
    parent = hashlib.sha256(identity + field(b"salt", b"tenant")).digest()
    for tokens, key in zip(
        [[1, 2, 3, 4], [5, 6, 7, 2**32 - 1]],
        keys_of(make_hasher(), [1, 2, 3, 4, 5, 6, 7, 2**32 - 1], "tenant"),
        strict=True,
    ):
        packed = b"".join(token.to_bytes(4, "little") for token in tokens)
        parent = hashlib.sha256(field(b"parent", parent) + field(b"tokens", packed)).digest()
        assert key == parent


@pytest.mark.parametrize(
    "change",
    [
        {"weights_digest": "v"},
        {"adapter_digest": ""},
        {"dtype": "float32"},
        {"layout_version": 2},
        {"shard": "0/2"},
        {"block_size": 2},
    ],
)
def test_any_other_identity_gives_other_names(change: dict[str, object]) -> None:
    tokens = [1, 2, 3, 4]
    assert not set(keys_of(make_hasher(**change), tokens)) & set(keys_of(make_hasher(), tokens))


def test_text_cannot_move_from_one_field_to_the_next() -> None:
    moved = make_hasher(weights_digest="wa", adapter_digest="")
    assert moved.root("") != make_hasher(weights_digest="w", adapter_digest="a").root("")


def test_salts_give_other_names() -> None:
    roots = {make_hasher().root(salt) for salt in ["", "a", "b", "\ud800", "é"]}
    assert len(roots) == 5


def test_name_depends_on_every_token_before() -> None:
    hasher = make_hasher()
    assert keys_of(hasher, [1, 2, 3, 4, 5, 6, 7, 8])[1] != keys_of(hasher, [1, 2, 3, 9, 5, 6, 7, 8])[1]


def test_partial_block_has_no_name() -> None:
    assert len(keys_of(make_hasher(), [1] * 7)) == 1


def test_extending_hashes_only_what_is_new() -> None:
    hasher = make_hasher()
    tokens = list(range(12))
    keys = keys_of(hasher, tokens[:8])
    first_two = list(keys)
    hasher.extend(keys, tokens, "")
    assert keys[:2] == first_two
    assert keys == keys_of(hasher, tokens)


def test_match_ends_at_the_first_block_that_differs() -> None:
    pool, cache = make_cache()
    blocks = store(pool, cache, [1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 9])
    assert cache.match([1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0], "") == blocks[:2]
    assert cache.match([0, 2, 3, 4, 5, 6, 7, 8], "") == []


def test_match_of_another_tenant_is_empty() -> None:
    pool, cache = make_cache()
    store(pool, cache, [1, 2, 3, 4], "one")
    assert cache.match([1, 2, 3, 4], "two") == []


def test_match_holds_nothing() -> None:
    pool, cache = make_cache()
    pool.free(store(pool, cache, [1, 2, 3, 4]))
    cache.match([1, 2, 3, 4], "")
    assert pool.num_free == pool.num_blocks


def test_match_survives_until_its_blocks_are_reused() -> None:
    pool, cache = make_cache(3)
    pool.free(store(pool, cache, list(range(12))))
    pool.free(pool.allocate(1))
    assert len(cache.match(list(range(12)), "")) == 2


def test_match_is_the_longest_common_prefix_by_brute_force() -> None:
    draw = random.Random(5)
    pool, cache = make_cache(400)
    seen: list[list[int]] = []
    for _ in range(60):
        tokens = [draw.randrange(2) for _ in range(draw.randrange(1, 24))]
        expected = 0
        for other in seen:
            common = next(
                (i for i, (a, b) in enumerate(zip(tokens, other, strict=False)) if a != b), min(len(tokens), len(other))
            )
            expected = max(expected, common // 4)
        assert len(cache.match(tokens, "")) == expected
        store(pool, cache, tokens)
        seen.append(tokens)


@pytest.mark.parametrize("guess", [0, 1, 2, 3])
def test_probe_finds_what_match_finds_from_any_guess(guess: int) -> None:
    pool, cache = make_cache()
    store(pool, cache, list(range(8)))
    keys = keys_of(cache.hasher, list(range(12)))
    assert cache.probe(keys, 3, guess) == 2


def test_probe_never_finds_less_than_match() -> None:
    draw = random.Random(7)
    for _ in range(200):
        pool, cache = make_cache()
        keys = keys_of(cache.hasher, list(range(40)))
        for key in draw.sample(keys, draw.randrange(len(keys) + 1)):
            cache.register(pool.allocate(1)[0], key)
        limit = draw.randrange(len(keys) + 1)
        assert cache.probe(keys, limit, draw.randrange(12)) >= len(cache.match_keys(keys, limit))


def test_cache_without_prefixes_names_nothing() -> None:
    cache = KVCache(4, make_hasher(), enable_prefix=False)
    keys: list[bytes] = []
    cache.extend_keys(keys, [1, 2, 3, 4], "")
    cache.register(cache.pool.allocate(1), [b"k"], 0, 1)
    assert keys == []
    assert cache.pool.num_named == 0
