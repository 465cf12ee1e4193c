"""The controller's store in front of the API server: keeps in memory what changed, until the operator has written it.

Stands where `JobStore` stands on one machine. Nothing here lasts by itself: `take_changes` hands over what must be
written before anything is carried out. Owned by the operator.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from millpond.jobs.state import JobState
from millpond.jobs.store import EventRecord, JobRecord, ModelVersionRecord

_MAX_EVENTS = 2000


@dataclass(slots=True)
class Changes:
    """What a cycle of the controller left to be written."""

    states: dict[str, JobState] = field(default_factory=dict)
    made: dict[str, JobState] = field(default_factory=dict)  # jobs of crons, that have no object yet
    explained: set[str] = field(default_factory=set)
    versions: list[ModelVersionRecord] = field(default_factory=list)


class ObjectStore:
    """Jobs between the controller and the API server."""

    def __init__(self) -> None:
        self.explanations: dict[str, dict[str, object]] = {}
        self.events: deque[tuple[str, EventRecord]] = deque(maxlen=_MAX_EVENTS)  # the oldest are dropped, as ever
        self._new: dict[str, JobRecord] = {}
        self._wishes: dict[int, tuple[str, str]] = {}
        self._changes = Changes()
        self._count = 0

    def submit(self, state: JobState) -> None:
        """A job that the controller does not know yet."""
        self._count += 1
        self._new[state.uid] = JobRecord(self._count, state, {})
        self._changes.states[state.uid] = state

    def ask(self, uid: str, verb: str) -> None:
        """A wish for the controller: delete, suspend, resume."""
        self._count += 1
        self._wishes[self._count] = (uid, verb)

    def take_changes(self) -> Changes:
        """What changed since the last call."""
        changes, self._changes = self._changes, Changes()
        return changes

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything here is of one thread."""
        yield

    def load(self, after: int = 0) -> list[JobRecord]:
        """Jobs that came since; each is handed out once."""
        found = [record for record in self._new.values() if record.number > after]
        self._new = {}
        return found

    def wishes(self) -> list[tuple[int, str, str]]:
        """Wishes not yet granted."""
        return [(number, uid, verb) for number, (uid, verb) in self._wishes.items()]

    def grant(self, numbers: Iterable[int]) -> None:
        """Forgets wishes."""
        for number in numbers:
            self._wishes.pop(number, None)

    def add(self, state: JobState) -> None:
        """A job that the controller made for a cron."""
        self._changes.made[state.uid] = state
        self._changes.states[state.uid] = state

    def save(self, states: Iterable[JobState]) -> None:
        """Notes what must be written."""
        for state in states:
            self._changes.states[state.uid] = state
            if state.deleted_s is not None:
                self.explanations.pop(state.uid, None)

    def add_events(self, events: Iterable[tuple[str, EventRecord]]) -> None:
        """Notes events."""
        self.events.extend(events)

    def explain(self, explanations: Mapping[str, dict[str, object]]) -> None:
        """Notes why jobs wait."""
        for uid, explanation in explanations.items():
            self._changes.explained.add(uid)
            if explanation:
                self.explanations[uid] = explanation
            else:
                self.explanations.pop(uid, None)

    def add_model_version(self, version: ModelVersionRecord) -> None:
        """Notes a version of a model."""
        self._changes.versions.append(version)
