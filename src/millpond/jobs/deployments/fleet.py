"""A deployment's replicas and what is decided about them, without I/O: facts in, steps out.

Owns the replicas, the autoscalers, and how often starts failed. The keeper feeds it with wishes, jobs and probes, and
carries out what it asks for. The clock is passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from millpond.api.deployment import DeploymentStatus, RolloutSpec, ServerPhase, VersionSpec
from millpond.jobs.deployments.autoscale import Autoscaler
from millpond.jobs.deployments.balance import Balancer
from millpond.jobs.deployments.plan import Aim, plan
from millpond.jobs.deployments.proxy import Counts
from millpond.jobs.deployments.report import VersionFacts, make_status
from millpond.jobs.deployments.servers import Replica
from millpond.jobs.deployments.wish import Wish
from millpond.jobs.state import JobState

_FORGIVEN_S = 60.0  # nothing failed for so long, and a replica is ready: what failed before does not count any more
_SCALE_EVERY_S = 1.0
KEPT_ENDED = 3  # replicas that failed are kept, with their logs


@dataclass(slots=True)
class Trouble:
    """Starts of one revision that failed, in a row."""

    count: int = 0
    at_s: float = 0.0
    message: str = ""


@dataclass(slots=True)
class Todo:
    """What the keeper must do: replicas to start (version and number), jobs to stop, events to tell."""

    starts: list[tuple[str, int]] = field(default_factory=list)
    stops: list[str] = field(default_factory=list)
    events: list[tuple[str, str, str]] = field(default_factory=list)  # kind, reason, message


class Fleet:
    """The replicas of one deployment.

    Args:
        wish: What the user wants.
        balancer: Told which replicas take requests.
        said: What an earlier keeper said last; autoscaled counts go on from there.
        clock: Seconds since the epoch.
    """

    def __init__(
        self, wish: Wish, balancer: Balancer, said: DeploymentStatus | None, clock: Callable[[], float]
    ) -> None:
        self.replicas: dict[str, Replica] = {}
        self._balancer = balancer
        self._clock = clock
        self._desired = {version.name: version.desired for version in said.versions} if said is not None else {}
        self._scalers: dict[str, Autoscaler] = {}
        self._troubles: dict[tuple[str, int], Trouble] = {}
        self._stopping: set[str] = set()
        self._next_scale_s = 0.0
        self._todo = Todo()
        self.wish = wish
        self._take_wish(wish, None)

    def take_wish(self, wish: Wish) -> None:
        """The user wants something else."""
        before, self.wish = self.wish, wish
        self._take_wish(wish, before)
        self._note("Normal", "Changed", f"Generation {wish.generation}: {wish.cause}.")

    def add(self, replica: Replica) -> None:
        """A replica whose job was submitted, now or by an earlier keeper."""
        self.replicas[replica.uid] = replica
        replica.wanted = self._wanted(self.wish.spec.version(replica.version))
        self._balancer.add(replica.backend)

    def take_job(self, state: JobState, explanation: dict[str, object]) -> None:
        """What a replica's job says."""
        replica = self.replicas.get(state.uid)
        if replica is None:
            return
        if replica.take_job(state, explanation, self._clock()):
            self._balancer.remove(replica.uid)
            if replica.uid not in self._stopping:
                self._failed(replica, replica.message)
        if state.deleted_s is not None:
            self._stopping.discard(state.uid)
            self.replicas.pop(state.uid)

    def lost_job(self, uid: str) -> None:
        """A replica's job is not in the store any more."""
        self._balancer.remove(uid)
        self._stopping.discard(uid)
        replica = self.replicas.pop(uid, None)
        if replica is not None:
            replica.enter(ServerPhase.ENDED, self._clock())  # nobody probes it any more

    def stop_again(self, uids: Iterable[str]) -> None:
        """Jobs could not be asked to stop."""
        self._stopping -= set(uids)

    def probed(self, replica: Replica) -> None:
        """A replica became ready, or stopped answering."""
        self._balancer.set_open(replica.backend, replica.phase is ServerPhase.READY)
        if replica.phase is ServerPhase.READY:
            self._note("Normal", "Ready", f"{replica.name} is ready.")
        else:
            self._note("Warning", "Unready", replica.message)

    def unreachable(self, uid: str) -> None:
        """A replica took no connection: it gets no requests until a probe succeeds."""
        replica = self.replicas.get(uid)
        if replica is not None and replica.phase is ServerPhase.READY:
            replica.enter(ServerPhase.UNREADY, self._clock(), f"{replica.name} takes no connections.")
            replica.readings = None
            self._balancer.set_open(replica.backend, False)

    def decide(self) -> Todo:
        """What to do now."""
        now_s = self._clock()
        for replica in self.replicas.values():
            self._check_patience(replica, now_s)
        if now_s >= self._next_scale_s:
            self._next_scale_s = now_s + _SCALE_EVERY_S
            self._scale(now_s)
        for name in self._names():
            self._plan(name, now_s)
        self._drop_ended()
        todo, self._todo = self._todo, Todo()
        return todo

    def status(self, counts: Mapping[str, Counts]) -> DeploymentStatus:
        """How it goes."""
        facts = {}
        for name in self._names():
            counted = counts.get(name, Counts())
            found = self._trouble(name)
            readings = [self._readings(replica) for replica in self._ready(name)]
            facts[name] = VersionFacts(
                self._desired_of(name), found.message if found.count else "", counted.requests, counted.failures,
                readings,
            )  # fmt: skip
        return make_status(self.wish, list(self.replicas.values()), facts, self._balancer.num_waiting, self._clock())

    @property
    def is_empty(self) -> bool:
        """Whether no job of a replica is left."""
        return not self.replicas

    def _take_wish(self, wish: Wish, before: Wish | None) -> None:
        self._balancer.limits = wish.spec.gateway
        self._balancer.set_weights({version.name: version.weight for version in wish.spec.versions})
        for version in wish.spec.versions:
            rule, name = version.autoscale, version.name
            old = None if before is None else before.spec.version(name)
            was_scaled = self._desired.get(name, version.replicas) if old is None else version.replicas
            is_new_count = old is None or old.replicas != version.replicas or old.autoscale is None
            if rule is None:
                self._scalers.pop(name, None)
            elif name not in self._scalers or is_new_count:
                self._scalers[name] = Autoscaler(min(max(was_scaled, rule.low), rule.high))
            for replica in self.replicas.values():
                if replica.version == name:
                    replica.wanted = self._wanted(version)
        if wish.is_deleting:
            self._balancer.refuse()

    def _names(self) -> list[str]:
        """Versions that are wanted, and those that are on their way out."""
        wanted = [version.name for version in self.wish.spec.versions]
        return [*wanted, *sorted({replica.version for replica in self.replicas.values()} - set(wanted))]

    def _desired_of(self, name: str) -> int:
        version = self.wish.spec.version(name)
        if version is None or self.wish.is_deleting:
            return 0
        return self._scalers[name].desired if name in self._scalers else version.replicas

    def _plan(self, name: str, now_s: float) -> None:
        version = self.wish.spec.version(name)
        revision = 0 if version is None else self.wish.revision(name).number
        trouble = self._trouble(name)
        aim = Aim(
            desired=self._desired_of(name),
            revision=revision,
            rollout=RolloutSpec() if version is None else version.rollout,
            failures=trouble.count,
            failed_s=trouble.at_s,
        )
        mine = [replica for replica in self.replicas.values() if replica.version == name]
        steps = plan(aim, [replica.view for replica in mine], now_s)
        self._todo.starts += [(name, revision)] * steps.starts
        for uid in steps.drains:
            self._drain(self.replicas[uid], now_s)
        over = plan(aim, [self.replicas[uid].view for uid in steps.drains], now_s).stops
        self._stop([*steps.stops, *over])

    def _drain(self, replica: Replica, now_s: float) -> None:
        self._balancer.set_open(replica.backend, False)
        replica.enter(ServerPhase.DRAINING, now_s)
        self._note("Normal", "Draining", f"{replica.name} finishes its requests.")

    def _stop(self, uids: Iterable[str]) -> None:
        for uid in uids:
            if uid not in self._stopping:
                self._stopping.add(uid)
                self._balancer.remove(uid)
                self._todo.stops.append(uid)

    def _drop_ended(self) -> None:
        """Jobs of replicas that ended are kept for their logs, a few of them."""
        ended = sorted(
            (r for r in self.replicas.values() if r.phase is ServerPhase.ENDED and r.uid not in self._stopping),
            key=lambda replica: replica.since_s,
        )
        kept = 0 if self.wish.is_deleting else KEPT_ENDED
        self._stop(replica.uid for replica in (ended[:-kept] if kept else ended))

    def _check_patience(self, replica: Replica, now_s: float) -> None:
        probe = replica.template.ready
        if replica.phase is ServerPhase.STARTING and now_s >= replica.since_s + probe.start_s:
            self._failed(replica, f"{replica.name} was not ready within {probe.start_s:g} s.")
            self._drain(replica, now_s)
        elif replica.phase is ServerPhase.UNREADY and probe.give_up and replica.misses >= probe.give_up:
            self._failed(replica, f"{replica.name} has not answered {replica.misses} probes.")
            self._drain(replica, now_s)
        elif replica.phase is ServerPhase.READY:
            trouble = self._troubles.get((replica.version, replica.revision))
            if trouble is not None and now_s >= trouble.at_s + _FORGIVEN_S:
                del self._troubles[replica.version, replica.revision]

    def _failed(self, replica: Replica, message: str) -> None:
        trouble = self._troubles.setdefault((replica.version, replica.revision), Trouble())
        trouble.count, trouble.at_s, trouble.message = trouble.count + 1, self._clock(), message
        self._note("Warning", "Failed", message)

    def _trouble(self, name: str) -> Trouble:
        version = self.wish.spec.version(name)
        if version is None:
            return Trouble()
        return self._troubles.get((name, self.wish.revision(name).number), Trouble())

    def _ready(self, name: str) -> list[Replica]:
        return [r for r in self.replicas.values() if r.version == name and r.phase is ServerPhase.READY]

    @staticmethod
    def _readings(replica: Replica) -> dict[str, float] | None:
        if replica.wanted and replica.readings is None:
            return None
        return {**(replica.readings or {}), "requests": float(replica.backend.in_flight)}

    def _scale(self, now_s: float) -> None:
        for name, scaler in self._scalers.items():
            version = self.wish.spec.version(name)
            if version is None or version.autoscale is None or self.wish.is_deleting:
                continue
            before = scaler.desired
            readings = [self._readings(replica) for replica in self._ready(name)]
            after = scaler.decide(version.autoscale, readings, self._balancer.num_waiting_for(name), now_s)
            if after != before:
                self._note("Normal", "Scaled", f"Version {name}: {before} -> {after} replicas.")

    @staticmethod
    def _wanted(version: VersionSpec | None) -> frozenset[str]:
        if version is None or version.autoscale is None:
            return frozenset()
        return frozenset(version.autoscale.targets) - {"requests"}

    def _note(self, kind: str, reason: str, message: str) -> None:
        self._todo.events.append((kind, reason, message))
