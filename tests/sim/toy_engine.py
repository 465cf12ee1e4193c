"""A scheduler with the toy model behind it: steps, and keeps account of how every sequence ended."""

from __future__ import annotations

from collections.abc import Callable

from millpond.inference.kv import BlockHasher, KVCache
from millpond.inference.sched import Scheduler, SchedulerLimits, Sequence, StepPlan, TransitionLog
from tests.sim.toy_model import ToyExecutor, generate_alone


def make_sequence(seq_id: int, prompt: list[int], max_tokens: int = 4, **arguments: object) -> Sequence:
    """A sequence that answers a request of its own, later than those with a lower id."""
    values = {"request_id": f"r{seq_id}", "arrival_s": float(seq_id), **arguments}
    return Sequence(seq_id=seq_id, prompt_token_ids=prompt, max_tokens=max_tokens, **values)  # type: ignore[arg-type]


class ToyEngine:
    """Everything an engine does, without a model. `now_s` is its clock; every step takes `step_s` seconds."""

    def __init__(
        self,
        *,
        num_blocks: int = 64,
        block_size: int = 4,
        max_batch_tokens: int = 32,
        max_sequences: int = 8,
        max_queue: int = 64,
        max_model_len: int = 128,
        enable_prefix: bool = True,
        step_s: float = 1.0,
        trace: TransitionLog | None = None,
    ) -> None:
        hasher = BlockHasher(block_size=block_size, weights_digest="toy", dtype="int")
        self.cache = KVCache(num_blocks, hasher, enable_prefix=enable_prefix)
        self.limits = SchedulerLimits(max_batch_tokens, max_sequences, max_queue, max_model_len)
        self.scheduler = Scheduler(self.limits, self.cache, validate=True, trace=trace)
        self.executor = ToyExecutor(num_blocks, block_size)
        self.now_s = 0.0
        self.step_s = step_s
        self.ends: dict[int, tuple[str, int | None]] = {}
        self.added: dict[int, Sequence] = {}
        self.plans: list[StepPlan] = []
        self.num_preempted = 0

    def add(self, *group: Sequence) -> None:
        """Queues the sequences of one request."""
        self.scheduler.add_group(list(group))
        self.added.update((seq.seq_id, seq) for seq in group)

    def cancel(self, seq_id: int) -> bool:
        """Cancels a sequence; False when it is over already."""
        seq = self.scheduler.cancel(seq_id)
        if seq is None:
            return False
        self.note_end(seq, "cancelled", None)
        return True

    def note_end(self, seq: Sequence, reason: str, stop_reason: int | None) -> None:
        """Notes an end, the first and only one of its sequence."""
        assert seq.seq_id not in self.ends, f"sequence {seq.seq_id} ended twice"
        assert not seq.block_ids or reason == "cancelled"
        assert seq.finish_reason == reason
        self.ends[seq.seq_id] = (reason, stop_reason)

    def plan(self) -> StepPlan:
        """Plans a step and checks what every plan must keep."""
        plan = self.scheduler.schedule(self.now_s)
        assert plan.num_tokens <= self.limits.max_batch_tokens
        assert len(plan.entries) <= self.limits.max_sequences
        assert len({entry.seq.seq_id for entry in plan.entries}) == len(plan.entries)
        for entry in plan.entries:
            end = entry.start + entry.num_tokens - entry.num_drafts
            assert entry.start == entry.seq.num_computed_tokens
            assert entry.num_tokens > 0
            assert end <= entry.seq.num_tokens
            assert entry.samples == (end == entry.seq.num_tokens and entry.seq.max_tokens > 0)
        assert not {entry.seq.seq_id for entry in plan.entries} & set(plan.preempted)
        for seq in plan.expired:
            self.note_end(seq, "deadline", None)
        self.plans.append(plan)
        self.num_preempted += len(plan.preempted)
        return plan

    def step(self, meanwhile: Callable[[], None] | None = None) -> StepPlan:
        """One whole step; `meanwhile` happens after the executor ran and before its results are taken."""
        plan = self.plan()
        tokens = self.executor.run(plan)
        if meanwhile is not None:
            meanwhile()
        self.now_s += self.step_s
        for seq, reason, stop_reason in self.scheduler.complete(plan, tokens, self.now_s).finished:
            self.note_end(seq, reason, stop_reason)
        return plan

    def step_that_fails(self) -> StepPlan:
        """A step whose executor wrote nonsense to all its slots and raised."""
        plan = self.plan()
        if plan.entries:
            self.executor.spoil(plan)
            for seq in self.scheduler.abandon(plan):
                self.note_end(seq, "error", None)
        return plan

    def run(self, max_steps: int = 2000) -> int:
        """Steps until nothing is left; returns the number of steps."""
        for count in range(max_steps):
            if not self.scheduler.has_work:
                return count
            self.step()
        raise AssertionError(f"not done after {max_steps} steps")

    def check_outputs(self) -> None:
        """Every sequence that was added ended once, with the tokens it would have had alone."""
        assert set(self.ends) == set(self.added)
        for seq_id, (reason, stop_reason) in self.ends.items():
            seq = self.added[seq_id]
            output, alone_reason, alone_stop_reason = generate_alone(seq, self.limits.max_model_len)
            if reason in ("cancelled", "deadline", "error"):
                assert seq.output_token_ids == output[: len(seq.output_token_ids)]
            else:
                assert (seq.output_token_ids, reason, stop_reason) == (output, alone_reason, alone_stop_reason)
        assert self.cache.pool.num_free == self.cache.pool.num_blocks
