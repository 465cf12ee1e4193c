"""Hypothesis: the block pool does what a pool made of plain lists does, in any order of calls."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from millpond.inference.kv import BlockPool


class PoolMachine(RuleBasedStateMachine):
    """The model keeps the free blocks in one list, next to be reused first, and does everything by searching it."""

    @initialize(num_blocks=st.integers(1, 12))
    def start(self, num_blocks):
        self.pool = BlockPool(num_blocks, 4)
        self.free = list(range(num_blocks))
        self.holds = [0] * num_blocks
        self.keys = {}  # block -> key
        self.chains = []

    @precondition(lambda self: self.free)
    @rule(data=st.data())
    def allocate(self, data):
        count = data.draw(st.integers(1, len(self.free)))
        expected, self.free = self.free[:count], self.free[count:]
        assert self.pool.allocate(count) == expected
        for block in expected:
            self.keys.pop(block, None)
            self.holds[block] = 1
        self.chains.append(expected)

    @precondition(lambda self: self.chains)
    @rule(data=st.data())
    def free_chain(self, data):
        chain = self.chains.pop(data.draw(st.integers(0, len(self.chains) - 1)))
        self.pool.free(chain)
        for block in chain[::-1]:
            self.holds[block] -= 1
            if not self.holds[block]:
                self.free.insert(len(self.free) if block in self.keys else 0, block)

    @precondition(lambda self: self.keys)
    @rule(data=st.data())
    def take_back_by_key(self, data):
        wanted = data.draw(st.lists(st.sampled_from(sorted(self.keys)), unique=True))
        found = [self.pool.find(self.keys[block]) for block in wanted]
        assert found == wanted
        assert self.pool.count_free(found) == sum(block in self.free for block in found)
        self.pool.acquire(found)
        for block in found:
            self.holds[block] += 1
            if block in self.free:
                self.free.remove(block)
        self.chains.append(found)

    @precondition(lambda self: any(self.chains))
    @rule(data=st.data(), number=st.integers(0, 9))
    def name(self, data, number):
        block = data.draw(st.sampled_from(sorted({block for chain in self.chains for block in chain})))
        key = bytes([number])
        is_new = block not in self.keys and key not in self.keys.values()
        assert self.pool.name(block, key) == is_new
        if is_new:
            self.keys[block] = key

    @invariant()
    def agrees(self):
        if hasattr(self, "pool"):
            self.pool.check_integrity()
            assert self.pool.free_block_ids() == self.free
            assert self.pool.num_named == len(self.keys)
            assert [self.pool.ref_count(block) for block in range(self.pool.num_blocks)] == self.holds
            assert all(self.pool.key_of(block) == key for block, key in self.keys.items())


PoolMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestPool = PoolMachine.TestCase
