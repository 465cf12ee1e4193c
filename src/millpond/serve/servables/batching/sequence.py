"""`SequenceBatcher`: the requests of a sequence go to one replica, in order, one at a time.

"direct" gives every sequence a fixed row of its replica's batch; "oldest" forms batches of the oldest requests of the
sequences a replica holds. Iterative sequences are requests that their model wants to execute again and again. What is
added to requests is `controls`', who sits where is `seats`'.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from millpond.serve.servables.batching.controls import ControlTensors
from millpond.serve.servables.batching.endings import Fail, queue_full, timed_out
from millpond.serve.servables.batching.plan import BatchRules, ShapeKeys
from millpond.serve.servables.batching.seats import Seats, Sequence
from millpond.serve.servables.batching.timer import Timer
from millpond.serve.servables.calls import Call
from millpond.serve.servables.config import SequenceBatching, ServableConfig
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.limits import ServableLimits
from millpond.serve.servables.messages import InferRequest, InferResponse, SequenceRef
from millpond.serve.servables.replicas import Replica

_MOST_CANDIDATES = 1024  # of one replica, when the configuration does not say


class SequenceBatcher:
    """The scheduler of a servable with sequence batching.

    Args:
        config: The servable's.
        batching: Its batching.
        fail: Answers a call with an error.
        clock: Nanoseconds.
        limits: How many sequences, and how long a call may wait.
    """

    def __init__(
        self,
        config: ServableConfig,
        batching: SequenceBatching,
        *,
        fail: Fail,
        clock: Callable[[], int],
        limits: ServableLimits,
    ) -> None:
        self._model = config.name
        self._batching = batching
        self._fail = fail
        self._clock = clock
        self._limits = limits
        self._max_rows = max(1, config.max_batch_size)
        self._is_direct = batching.strategy == "direct"
        self._controls = ControlTensors(config, batching)
        self._keys = ShapeKeys(config)
        self._rules = BatchRules(self._max_rows, frozenset(batching.preferred_sizes), batching.max_delay_us * 1000)
        self._seats = Seats(self._max_rows if self._is_direct else batching.max_candidates or _MOST_CANDIDATES)
        self._by_key: dict[int | str, Sequence] = {}  # those that may get another request
        self._all: set[Sequence] = set()
        self._timer = Timer(self._on_time, clock)
        self._flights: dict[Call, tuple[Sequence, InferRequest]] = {}  # running, and the request as it came
        self._num_unnamed = 0
        self.num_waiting = 0

    @property
    def is_idle(self) -> bool:
        return not self._all

    def add_replica(self, replica: Replica) -> None:
        """Lets a replica have sequences."""
        self._seats.add_replica(replica)

    def submit(self, call: Call) -> None:
        sequence = self._sequence_of(call)
        call.shape_key = self._keys.of(call.request)
        sequence.calls.append(call)
        sequence.last_ns = call.accepted_ns
        self.num_waiting += 1
        if sequence not in self._all:
            self._all.add(sequence)
            self._seats.seat(sequence)
        self._timer.at(call.accepted_ns + self._idle_ns)
        if sequence.replica is not None:
            sequence.replica.wake()

    def discard(self, call: Call) -> bool:
        if call.started_ns or call in self._flights:
            return False
        self.num_waiting -= 1
        found = next((one for one in self._all if call in one.calls), None)
        if found is not None:
            found.calls.remove(call)
            self._settle(found)
        return True

    def fail_waiting(self, error: ServableError) -> None:
        for sequence in list(self._all):
            self._drop(sequence, error)

    def poke(self) -> None:
        for replica in self._seats.replicas():
            replica.wake()

    def owns(self, request: InferRequest) -> bool:
        return request.sequence is not None and request.sequence.key in self._by_key

    def close(self) -> None:
        self._timer.stop()

    def take(self, replica: Replica) -> list[Call]:
        if not self.num_waiting:
            return []
        now_ns = self._clock()
        slots = self._seats.of(replica)
        ready = [(sequence, head) for sequence in slots if sequence and (head := sequence.head()) is not None]
        if not ready:
            return []
        ready.sort(key=lambda pair: pair[1].accepted_ns)
        if self._is_direct:
            chosen = self._choose_direct(ready, len(slots) - slots.count(None), now_ns)
        else:
            plan = self._rules.plan((head for _, head in ready), now_ns)
            chosen = ready[: plan.count]
            if not plan.count:
                self._timer.at(plan.wait_until_ns)
        if not chosen:
            return []
        for sequence, call in chosen:
            self._begin(sequence, call)
        if self._is_direct and self._controls.has_ready:
            return self._in_rows(slots, [call for _, call in chosen])
        if len(chosen) < len(ready):
            replica.wake()
        return [call for _, call in chosen]

    def ended(self, replica: Replica, calls: list[Call]) -> None:
        now_ns = self._clock()
        for call in calls:
            if call.is_null:
                continue
            sequence, asked = self._flights.pop(call)
            sequence.running = None
            sequence.last_ns = now_ns
            if not call.done:
                call.request = asked  # `again` has put it back in line
            self._settle(sequence)
        if replica.is_down and not self._controls.has_states:
            # What the model remembered of its sequences died with it.
            gone = ServableError("unavailable", f"the sequence was lost when an instance of '{self._model}' stopped")
            for seated in self._seats.of(replica):
                if seated is not None:
                    self._drop(seated, gone)
        if self._all:
            self._timer.at(now_ns + self._idle_ns)

    def outgoing(self, call: Call, response: InferResponse) -> InferResponse:
        sequence, asked = self._flights[call]
        if self._controls.has_states and response.error is None:
            response.outputs = self._controls.keep(asked, response.outputs, sequence.states)
        return response

    def returned(self, call: Call) -> bool:
        return False

    def again(self, call: Call) -> bool:
        if not self._batching.iterative or call.was_cancelled:
            return False
        sequence, _ = self._flights[call]
        call.started_ns = 0
        call.accepted_ns = self._clock()
        sequence.calls.appendleft(call)
        self.num_waiting += 1
        return True

    @property
    def _idle_ns(self) -> int:
        return self._batching.max_idle_us * 1000

    def _sequence_of(self, call: Call) -> Sequence:
        """The sequence a call belongs to, a new one if it starts one."""
        request = call.request
        if call.rows > 1:
            raise ServableError(
                "invalid_argument",
                f"inference request to model '{self._model}' must specify batch-size 1 due to requirements of sequence "
                "batcher",
            )
        ref = request.sequence
        if ref is None and self._batching.iterative:
            self._num_unnamed += 1
            ref = SequenceRef(self._num_unnamed, start=True, end=True)
            unnamed = Sequence(ref.key)
            unnamed.is_ending = True
            self._check_room(call)
            return unnamed
        if ref is None or not ref.key:
            raise ServableError(
                "invalid_argument",
                f"inference request to model '{self._model}' must specify a non-zero or non-empty correlation ID",
            )
        self._controls.check_key(ref.key)
        known = self._by_key.get(ref.key)
        if known is None:
            if not ref.start:
                raise ServableError(
                    "invalid_argument",
                    f"inference request for sequence {ref.key} to model '{self._model}' must specify the START flag on "
                    "the first request of the sequence",
                )
            self._check_room(call)
            known = self._by_key[ref.key] = Sequence(ref.key)
        if ref.end:
            known.is_ending = True
            del self._by_key[ref.key]
        return known

    def _check_room(self, call: Call) -> None:
        if len(self._all) >= self._limits.max_sequences:
            raise queue_full(call)

    def _choose_direct(
        self, ready: list[tuple[Sequence, Call]], num_seated: int, now_ns: int
    ) -> list[tuple[Sequence, Call]]:
        batching = self._batching
        oldest = ready[0][1]
        wait_until_ns = oldest.accepted_ns + batching.max_delay_us * 1000
        if now_ns < wait_until_ns and len(ready) < batching.minimum_slot_utilization * num_seated:
            self._timer.at(wait_until_ns)
            return []
        chosen = [(sequence, call) for sequence, call in ready if call.shape_key == oldest.shape_key]
        return sorted(chosen, key=lambda pair: pair[0].slot)

    def _begin(self, sequence: Sequence, call: Call) -> None:
        """Makes a call ready to be executed: it gets its control tensors and states."""
        sequence.calls.remove(call)
        sequence.running = call
        self.num_waiting -= 1
        ref = call.request.sequence
        is_first_round = call.num_rounds == 0
        call.num_rounds += 1
        starts = is_first_round and (not sequence.has_begun or (ref is not None and ref.start))
        if starts:
            sequence.states.clear()
        sequence.has_begun = True
        self._flights[call] = (sequence, call.request)
        ends = ref is not None and ref.end
        call.request = self._controls.add(
            call.request, sequence.key, sequence.states, ready=True, start=starts, end=ends
        )

    def _in_rows(self, slots: list[Sequence | None], calls: list[Call]) -> list[Call]:
        """Puts every call into its sequence's row; rows without one get a request that nobody waits for."""
        template = self._flights[calls[0]][1]
        rows = []
        for sequence in slots:
            if sequence is not None and sequence.running is not None and sequence.running in calls:
                rows.append(sequence.running)
                continue
            request = self._controls.add(
                msgspec.structs.replace(template, request_id="", sequence=None, trace=None),
                0,
                {},
                ready=False,
                start=False,
                end=False,
            )
            null = Call(request, 1, calls[0].sink)
            null.is_null = True
            rows.append(null)
        return rows

    def _settle(self, sequence: Sequence) -> None:
        """Frees the place of a sequence that is over; lets one that is not go on."""
        if sequence.is_ending and sequence.is_quiet():
            self._leave(sequence)
        elif sequence.replica is not None and sequence.head() is not None:
            sequence.replica.wake()

    def _leave(self, sequence: Sequence) -> None:
        if sequence not in self._all:
            return
        self._all.discard(sequence)
        if self._by_key.get(sequence.key) is sequence:
            del self._by_key[sequence.key]
        heir = self._seats.leave(sequence)
        if heir is not None and heir.replica is not None:
            heir.replica.wake()

    def _drop(self, sequence: Sequence, error: ServableError) -> None:
        """Ends a sequence and answers what waits with an error."""
        calls = [call for call in sequence.calls if not call.done]
        sequence.calls.clear()
        self.num_waiting -= len(calls)
        for call in calls:
            self._fail(call, error)
        sequence.is_ending = True
        if self._by_key.get(sequence.key) is sequence:
            del self._by_key[sequence.key]
        if sequence.running is None:
            self._leave(sequence)

    def _on_time(self) -> None:
        """Ends idle sequences and waits that are too long, and lets delayed batches go."""
        now_ns = self._clock()
        next_ns = now_ns + self._idle_ns
        for sequence in list(self._all):
            head = sequence.head()
            if head is not None and now_ns >= head.accepted_ns + int(self._limits.max_wait_s * 1e9):
                self._drop(sequence, timed_out(head))
            elif sequence.is_quiet():
                if now_ns >= sequence.last_ns + self._idle_ns:
                    self._leave(sequence)
                else:
                    next_ns = min(next_ns, sequence.last_ns + self._idle_ns)
        self.poke()
        if self._all:
            # Not more often than needed: with many sequences every look costs.
            self._timer.at(max(next_ns, now_ns + self._idle_ns // 16))
