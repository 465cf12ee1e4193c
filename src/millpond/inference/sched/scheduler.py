"""`Scheduler`: decides for every step which tokens of which sequences are computed, and when a sequence is over.

Owns the life of every sequence from `add` to its one end, and all blocks through `KVCache`. One rule makes every
decision: a sequence has known tokens and computed tokens, a step has a token budget. Pure: no torch, no randomness,
no clock (time comes in as `now_s`). Driven by the engine's loop thread, or by the simulator; not thread-safe.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from heapq import heapify, heappop, heappush

from millpond.api.request import FinishReason
from millpond.base.errors import QueueFullError, RequestError
from millpond.inference.kv import KVCache
from millpond.inference.sched.admission import check_fits
from millpond.inference.sched.batch import RunningBatch
from millpond.inference.sched.burst import Burst
from millpond.inference.sched.policy import share_budget
from millpond.inference.sched.state import SchedulerLimits, Sequence, SequenceStatus
from millpond.inference.sched.step import FinishedSequence, SchedulerStats, StepEntry, StepPlan, StepResult
from millpond.inference.sched.trace import TransitionLog
from millpond.inference.sched.waiting import WaitingQueue


class Scheduler:
    """Continuous batching over one KV cache.

    The engine calls, for every step: `schedule`, then runs the plan, then `complete` with the sampled tokens. `add` and
    `cancel` may come at any moment, between those two as well.

    Every added sequence ends exactly once: in what `cancel`, `cancel_request` or `abandon` return, in
    `StepPlan.expired` or in `StepResult.finished`. Its blocks are free from that moment, but for one case: the blocks
    of a sequence that is cancelled while its step is running stay held until `complete` or `abandon`, because the
    executor still writes to them.

    Args:
        limits: What a step and the engine may hold.
        cache: The blocks; no one else may allocate from it.
        validate: Check every invariant after every call. For tests.
        trace: Records what happened, to be replayed; see trace.py.
    """

    def __init__(
        self, limits: SchedulerLimits, cache: KVCache, *, validate: bool = False, trace: TransitionLog | None = None
    ) -> None:
        self.limits = limits
        self.cache = cache
        self._validate = validate
        self._trace = trace
        self._batch = RunningBatch(cache)
        self._waiting = WaitingQueue(self._batch, limits.max_running)
        self._live: dict[int, Sequence] = {}
        self._by_request: dict[str, list[Sequence]] = {}
        self._deadlines: list[tuple[float, int]] = []  # a heap; ended sequences leave it late
        self._in_flight: StepPlan | None = None
        self._cancelled_in_flight: list[Sequence] = []
        self._now_s = 0.0
        self._burst = Burst()
        self._steps_total = 0
        self._prompt_tokens_total = 0
        self._output_tokens_total = 0
        self._prefix_query_tokens_total = 0
        self._prefix_hit_tokens_total = 0
        self._preemptions_total = 0
        self._drafts_total = 0
        self._accepted_drafts_total = 0
        if trace is not None:
            trace.begin(self)

    # ---- sequences come and go

    def add(self, seq: Sequence) -> None:
        """Queues one sequence. Raises as `add_group`."""
        self.add_group([seq])

    def add_group(self, group: list[Sequence]) -> None:
        """Queues the sequences of one request: all of them, or none when an error is raised.

        Raises:
            QueueFullError: No place for all of them now.
            ContextLengthError: One can never fit the model's context or the cache.
            RequestError: An empty prompt, or more sequences than the queue can ever hold.
        """
        for seq in group:
            check_fits(seq, self.limits, self.cache.pool)
        self._check_queue(len(group))
        if self._trace is not None:
            self._trace.record_add(group)
        for seq in group:
            assert seq.seq_id not in self._live, f"sequence id {seq.seq_id} is in use"
            self.cache.extend_keys(seq.block_keys, seq.token_ids, seq.cache_salt)
            self._live[seq.seq_id] = seq
            self._by_request.setdefault(seq.request_id, []).append(seq)
            if seq.deadline_s is not None:
                heappush(self._deadlines, (seq.deadline_s, seq.seq_id))
            self._waiting.add(seq)
        self._after_call()

    def cancel(self, seq_id: int) -> Sequence | None:
        """Ends a sequence now, wherever it is. None when there is no such sequence (any more)."""
        seq = self._live.get(seq_id)
        if seq is None:
            return None
        if self._trace is not None:
            self._trace.record_cancel(seq_id)
        self._end_early(seq, "cancelled")
        self._after_call()
        return seq

    def cancel_request(self, request_id: str) -> list[Sequence]:
        """Ends all of a request's sequences that are left, and returns them."""
        left = list(self._by_request.get(request_id, ()))
        for seq in left:
            self.cancel(seq.seq_id)
        return left

    # ---- one step

    def schedule(self, now_s: float) -> StepPlan:
        """Plans the next step. The blocks of its entries are allocated when it returns.

        Raises:
            RuntimeError: The previous plan was not completed.
        """
        if self._in_flight is not None:
            raise RuntimeError("complete() the plan before the next schedule()")
        if self._trace is not None:
            self._trace.begin_step(self)
        self._now_s = now_s
        expired = self._expire(now_s)
        preempted: list[Sequence] = []
        self._waiting.admit(preempted, self._note_start)
        entries = self._fill_step(preempted)
        assert entries or not self._live, "sequences wait and nobody gets on"
        self._preemptions_total += len(preempted)
        plan = StepPlan(self._steps_total, entries, expired, tuple(seq.seq_id for seq in preempted))
        if entries:
            self._steps_total += 1
            self._in_flight = plan
        if self._trace is not None:
            self._trace.record_plan(plan, now_s)
        self._after_call()
        return plan

    def complete(self, plan: StepPlan, tokens: Mapping[int, int | list[int]], now_s: float) -> StepResult:
        """Takes the results of a plan.

        Args:
            plan: What `schedule` returned last.
            tokens: The sampled token of every entry that samples, by sequence id; several, in order, where drafts were
                accepted. Sequences that were cancelled meanwhile may be missing.
            now_s: The time, for deadlines.

        Raises:
            ValueError: It is not the plan in flight.
            KeyError: A sequence that samples has no token.
        """
        if not plan.entries:
            return StepResult(())
        if plan is not self._in_flight:
            raise ValueError(f"step {plan.step_id} is not in flight")
        if self._trace is not None:
            self._trace.record_tokens(tokens, now_s)
        self._now_s = now_s
        size = self.cache.block_size
        finished: list[FinishedSequence] = []
        for seq, start, num_tokens, samples, num_drafts in plan.entries:
            end = start + num_tokens
            if seq.status is SequenceStatus.FINISHED:  # cancelled; what was computed is worth as much as ever
                end -= num_drafts
            elif samples:
                if self._take_tokens(seq, tokens[seq.seq_id], now_s):
                    finished.append(FinishedSequence(seq, seq.finish_reason or "stop", seq.stop_reason))
                if num_drafts:
                    self._drafts_total += num_drafts
                    self._accepted_drafts_total += seq.num_tokens - 1 - (end - num_drafts)
                    end = min(end, seq.num_tokens - 1)  # the drafts that were not accepted have to be computed again
                    seq.draft_token_ids = []
            elif end == seq.num_tokens:  # max_tokens 0: the prompt was all
                seq.finish_reason = "length"
                finished.append(FinishedSequence(seq, "length", None))
            seq.num_computed_tokens = end
            if end // size != start // size:
                self._batch.register(seq, start, end)
        self._in_flight = None
        for ended in finished:
            self._batch.remove(ended.seq)
            self._batch.release(ended.seq)
            self._forget(ended.seq)
        for seq in self._cancelled_in_flight:
            self._batch.release(seq)
        self._cancelled_in_flight.clear()
        result = StepResult(tuple(finished))
        if self._trace is not None:
            self._trace.record_result(result)
        self._after_call()
        return result

    def abandon(self, plan: StepPlan) -> tuple[Sequence, ...]:
        """Ends the sequences of a plan whose step failed, in place of `complete`, and returns them.

        Nobody knows what the step wrote, so none of its blocks becomes findable; those filled before stay so.

        Raises:
            ValueError: It is not the plan in flight.
        """
        if plan is not self._in_flight:
            raise ValueError(f"step {plan.step_id} is not in flight")
        if self._trace is not None:
            self._trace.record_abandon()
        self._in_flight = None
        ended = tuple(entry.seq for entry in plan.entries if entry.seq.status is not SequenceStatus.FINISHED)
        for seq in ended:
            self._end_early(seq, "error")
        for seq in self._cancelled_in_flight:
            self._batch.release(seq)
        self._cancelled_in_flight.clear()
        self._after_call()
        return ended

    # ---- what can be seen

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._live)

    def sequences(self) -> list[Sequence]:
        """Every sequence that has not ended, in no order."""
        return list(self._live.values())

    @property
    def running(self) -> SequenceOf[Sequence]:
        """The sequences that hold blocks, most urgent first; valid until the next call."""
        return self._batch.sequences

    def stats(self) -> SchedulerStats:
        """Gauges and counters at this moment."""
        pool = self.cache.pool
        return SchedulerStats(
            num_running=len(self._batch),
            num_waiting=len(self._waiting),
            num_blocks=pool.num_blocks,
            num_free_blocks=pool.num_free,
            num_cached_blocks=pool.num_named,
            steps_total=self._steps_total,
            prompt_tokens_total=self._prompt_tokens_total,
            output_tokens_total=self._output_tokens_total,
            prefix_query_tokens_total=self._prefix_query_tokens_total,
            prefix_hit_tokens_total=self._prefix_hit_tokens_total,
            preemptions_total=self._preemptions_total,
            draft_tokens_total=self._drafts_total,
            accepted_draft_tokens_total=self._accepted_drafts_total,
        )

    def check_integrity(self) -> None:
        """Raises AssertionError when an invariant is broken. Walks everything: for tests."""
        self.cache.check_integrity()
        self._batch.check_integrity(self._cancelled_in_flight)
        self._waiting.check_integrity()
        placed = {seq.seq_id: seq for seq in (*self._batch.sequences, *self._waiting.sequences)}
        assert placed == self._live, "a sequence is nowhere, or in two places"
        assert len(self._batch) <= self.limits.max_running, "too many sequences run"
        by_request = {seq.seq_id: seq for group in self._by_request.values() for seq in group}
        assert by_request == self._live, "requests and sequences disagree"
        assert all(self._by_request.values()), "a request without sequences is kept"
        assert self._in_flight or not self._cancelled_in_flight, "blocks are held for a step that is over"
        with_deadline = {seq.seq_id for seq in self._live.values() if seq.deadline_s is not None}
        assert with_deadline <= {seq_id for _, seq_id in self._deadlines}, "a deadline is lost"

    def __getstate__(self) -> dict[str, object]:
        """Everything but the trace, which takes checkpoints of the scheduler."""
        return {**self.__dict__, "_trace": None}

    # ---- admission

    def _check_queue(self, count: int) -> None:
        limits = self.limits
        if count > limits.max_queue + limits.max_running:
            raise RequestError(
                f"{count} sequences at once are more than the engine can ever hold.",
                fix=f"Ask for {limits.max_queue + limits.max_running} at most, or raise scheduler.max_queue.",
                param="n",
            )
        places = limits.max_running - len(self._batch)
        if len(self._waiting) + count > limits.max_queue + places:
            raise QueueFullError(f"{len(self._waiting)} sequences wait already.", fix="Try again shortly.")

    def _note_start(self, seq: Sequence) -> None:
        if seq.first_scheduled_s is not None:  # it was preempted; what it finds now are mostly its own blocks
            return
        seq.first_scheduled_s = self._now_s
        seq.num_cached_tokens = seq.num_computed_tokens
        self._prompt_tokens_total += seq.num_tokens
        if self.cache.prefix is not None:
            self._prefix_query_tokens_total += seq.num_tokens
            self._prefix_hit_tokens_total += seq.num_cached_tokens

    # ---- the step

    def _fill_step(self, preempted: list[Sequence]) -> tuple[StepEntry, ...]:
        """Gives every running sequence its tokens and the blocks for them, most urgent first."""
        running = self._batch.sequences
        size, budget = self.cache.block_size, self.limits.max_batch_tokens
        prompts = [seq for seq in running if seq.num_tokens - seq.num_computed_tokens > 1]
        room = self.cache.pool.num_free * size
        prompts_first = self._burst.goes_first(running, prompts, budget, room, self._now_s)
        grants, spare = share_budget(running, prompts, budget, self._steps_total, prompts_first)
        singles: list[StepEntry] = []
        longer: list[StepEntry] = []
        stopped: list[Sequence] = []
        index = 0
        while index < len(running):  # the list may lose its end on the way
            seq = running[index]
            index += 1
            num_tokens = grants.get(seq.seq_id, 1) if grants else 1
            if not num_tokens:
                continue
            start = seq.num_computed_tokens
            end = start + num_tokens
            if end > len(seq.block_ids) * size:
                end = self._batch.make_room(seq, end, stopped)
                if end <= start:
                    continue
            samples = end == seq.num_tokens and seq.max_tokens > 0
            num_drafts = 0
            if samples and seq.draft_token_ids:
                most = min(len(seq.draft_token_ids), spare, seq.max_total_tokens - seq.num_tokens - 1)
                num_drafts = self._batch.make_room(seq, end + most, stopped) - end
                spare -= num_drafts
                end += num_drafts
            entry = StepEntry(seq, start, end - start, samples, num_drafts)
            (singles if end - start == 1 else longer).append(entry)
        for seq in stopped:
            self._waiting.add(seq)
        preempted += stopped
        return (*singles, *longer)

    def _take_tokens(self, seq: Sequence, sampled: int | list[int], now_s: float) -> bool:
        """Appends what was sampled, up to the token that ends the sequence. True when one did, or its time is up."""
        output = seq.output_token_ids
        for token_id in (sampled,) if isinstance(sampled, int) else sampled:
            seq.token_ids.append(token_id)
            output.append(token_id)
            seq.num_tokens += 1
            self._output_tokens_total += 1
            if token_id in seq.stop_token_ids and len(output) >= seq.min_tokens:
                seq.finish_reason = "stop"
                seq.stop_reason = None if token_id in seq.eos_token_ids else token_id
                return True
            if seq.num_tokens >= seq.max_total_tokens:
                seq.finish_reason = "length"
                return True
        if now_s >= seq.deadline_or_inf:
            seq.finish_reason = "deadline"
            return True
        return False

    # ---- the end of a sequence

    def _expire(self, now_s: float) -> tuple[Sequence, ...]:
        expired = []
        while self._deadlines and self._deadlines[0][0] <= now_s:
            seq = self._live.get(heappop(self._deadlines)[1])
            if seq is not None:
                self._end_early(seq, "deadline")
                expired.append(seq)
        return tuple(expired)

    def _end_early(self, seq: Sequence, reason: FinishReason) -> None:
        seq.finish_reason = reason
        if seq.status is SequenceStatus.WAITING:
            self._waiting.remove(seq)
        else:
            self._batch.remove(seq)
            if self._in_flight is not None and any(entry.seq is seq for entry in self._in_flight.entries):
                self._cancelled_in_flight.append(seq)  # the executor still writes to its blocks
            else:
                self._batch.release(seq)
        self._forget(seq)

    def _forget(self, seq: Sequence) -> None:
        seq.status = SequenceStatus.FINISHED
        del self._live[seq.seq_id]
        siblings = self._by_request[seq.request_id]
        siblings.remove(seq)
        if not siblings:
            del self._by_request[seq.request_id]
        if len(self._deadlines) > 2 * len(self._live) + 64:
            self._deadlines = [item for item in self._deadlines if item[1] in self._live]
            heapify(self._deadlines)

    def _after_call(self) -> None:
        if self._validate:
            self.check_integrity()
