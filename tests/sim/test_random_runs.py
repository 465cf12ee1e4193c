"""Hypothesis drives a whole scheduler against the toy model: calls in any order, small pools, every invariant."""

from __future__ import annotations

from hypothesis import HealthCheck, assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from millpond.base.errors import ContextLengthError, QueueFullError
from millpond.inference.sched import TransitionLog, replay
from tests.sim.toy_engine import ToyEngine, make_sequence
from tests.sim.toy_model import next_token, states

STEMS = [[1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 3, 4, 9, 9, 9, 9, 9, 9, 9, 9, 1], [5] * 22]

prompts = st.builds(
    lambda stem, cut, tail: (stem[:cut] + tail) or [3],
    st.sampled_from(STEMS),
    st.integers(0, 22),
    st.lists(st.integers(0, 16), max_size=6),
)


class SchedulerMachine(RuleBasedStateMachine):
    """Requests come, are cancelled at any moment, run out of time; the pool is too small for all of them."""

    @initialize(
        num_blocks=st.integers(6, 24),
        block_size=st.sampled_from([1, 2, 4]),
        max_batch_tokens=st.integers(1, 24),
        max_sequences=st.integers(1, 6),
        enable_prefix=st.booleans(),
        capacity=st.sampled_from([64, 1 << 20]),
    )
    def start(self, capacity: int, **settings: int) -> None:
        self.trace = TransitionLog(capacity)
        self.engine = ToyEngine(max_queue=6, max_model_len=48, trace=self.trace, **settings)
        self.next_id = 0

    @rule(
        prompt=prompts,
        n=st.integers(1, 3),
        max_tokens=st.integers(0, 12),
        min_tokens=st.integers(0, 4),
        stops=st.frozensets(st.integers(0, 16), max_size=3),
        priority=st.integers(0, 2),
        patience=st.none() | st.integers(1, 12),
        salt=st.sampled_from(["", "tenant"]),
        needs_prompt_logits=st.booleans(),
    )
    def add(self, prompt, n, max_tokens, min_tokens, stops, priority, patience, salt, needs_prompt_logits):
        group = [
            make_sequence(
                self.next_id + index,
                prompt,
                max_tokens,
                request_id=f"r{self.next_id}",
                index=index,
                min_tokens=min_tokens,
                stop_token_ids=stops,
                eos_token_ids=(3,),
                priority=priority,
                arrival_s=self.engine.now_s,
                deadline_s=None if patience is None else self.engine.now_s + patience,
                cache_salt=salt,
                needs_prompt_logits=needs_prompt_logits and index == 0,
            )
            for index in range(n)
        ]
        try:
            self.engine.add(*group)
        except (QueueFullError, ContextLengthError):
            assume(False)
        self.next_id += n

    @rule(choice=st.integers(0, 1000))
    def cancel(self, choice):
        if self.next_id:
            self.engine.cancel(choice % self.next_id)

    @rule(choices=st.lists(st.integers(0, 1000), max_size=2))
    def step_and_cancel_in_it(self, choices):
        def meanwhile() -> None:
            for choice in choices:
                if self.next_id:
                    self.engine.cancel(choice % self.next_id)

        self.engine.step(meanwhile)

    @rule()
    def step_that_fails(self):
        self.engine.step_that_fails()

    @rule(num_right=st.integers(0, 3), num_wrong=st.integers(0, 2))
    def draft(self, num_right, num_wrong):
        for seq in self.engine.scheduler.sequences():
            if seq.block_ids:
                token_ids = list(seq.token_ids)
                for _ in range(num_right):
                    token_ids.append(next_token(states(token_ids, seq.cache_salt)[-1]))
                seq.draft_token_ids = token_ids[seq.num_tokens :] + [1] * num_wrong

    @rule(count=st.integers(1, 5))
    def step(self, count):
        for _ in range(count):
            self.engine.step()

    @invariant()
    def stats_add_up(self):
        if hasattr(self, "engine"):
            stats = self.engine.scheduler.stats()
            assert stats.num_running + stats.num_waiting == len(self.engine.added) - len(self.engine.ends)
            assert stats.preemptions_total == self.engine.num_preempted

    def teardown(self):
        if hasattr(self, "engine"):
            self.engine.run()
            self.engine.check_outputs()
            replay(self.trace)


SchedulerMachine.TestCase.settings = settings(
    max_examples=150,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestRandomRuns = SchedulerMachine.TestCase
