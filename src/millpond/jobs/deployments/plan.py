"""Which replicas of a version to start, drain and stop next. Pure: a function of what there is and the time.

Called by the keeper after every change; it may be called again at any time, also by a keeper that was just started and
remembers nothing, because everything it needs is in its arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from millpond.api.deployment import RolloutSpec, ServerPhase

_BACKOFF_FIRST_S = 0.5
_BACKOFF_LAST_S = 30.0


@dataclass(frozen=True, slots=True)
class Server:
    """A replica as the plan sees it. `since_s`: when it came into its phase."""

    uid: str
    revision: int
    phase: ServerPhase
    created_s: float
    since_s: float
    in_flight: int = 0


@dataclass(frozen=True, slots=True)
class Aim:
    """What a version should come to.

    Attributes:
        failures: Replicas of this revision that ended, without one that stayed ready in between.
        failed_s: When the last of them ended.
    """

    desired: int
    revision: int
    rollout: RolloutSpec
    failures: int = 0
    failed_s: float = 0.0

    @property
    def next_start_s(self) -> float:
        """Before that, nothing is started: starts that fail come less and less often."""
        if not self.failures:
            return 0.0
        return self.failed_s + min(_BACKOFF_FIRST_S * 2.0 ** min(self.failures - 1, 16), _BACKOFF_LAST_S)


@dataclass(frozen=True, slots=True)
class Steps:
    """What to do: so many replicas to start, those to drain, those to stop."""

    starts: int = 0
    drains: tuple[str, ...] = ()
    stops: tuple[str, ...] = ()


def plan(aim: Aim, servers: Sequence[Server], now_s: float) -> Steps:
    """Returns the next steps towards the aim.

    Never are there more than `desired + max_surge` replicas that are not on their way out, and while replicas are
    exchanged, never are fewer than `desired - max_unavailable` of them ready if so many were.
    """
    staying = [server for server in servers if server.phase not in (ServerPhase.DRAINING, ServerPhase.ENDED)]
    new = [server for server in staying if server.revision == aim.revision]
    old = [server for server in staying if server.revision != aim.revision]
    room = aim.desired + aim.rollout.surge_of(aim.desired) - len(staying)
    starts = max(0, min(aim.desired - len(new), room if old else aim.desired - len(staying)))
    if now_s < aim.next_start_s:
        starts = 0
    surplus = sorted(new, key=_leaves_first)[: max(0, len(new) - aim.desired)]
    leaving = {server.uid for server in surplus} | _leaving_old(aim, old, new)
    return Steps(
        starts=starts,
        drains=tuple(server.uid for server in staying if server.uid in leaving),
        stops=tuple(server.uid for server in servers if _is_over(server, aim.rollout.drain_s, now_s)),
    )


def _leaving_old(aim: Aim, old: Sequence[Server], new: Sequence[Server]) -> set[str]:
    """Old replicas that can go now: those that answer nothing at once, the others as new ones take over."""
    least = aim.desired - aim.rollout.unavailable_of(aim.desired)
    num_ready = sum(server.phase is ServerPhase.READY for server in (*old, *new))
    spare = max(0, num_ready - least)
    ready = sorted((server for server in old if server.phase is ServerPhase.READY), key=_leaves_first)
    idle = [server for server in old if server.phase is not ServerPhase.READY]
    return {server.uid for server in (*idle, *ready[:spare])}


def _leaves_first(server: Server) -> tuple[bool, int, float]:
    """Order of leaving: what is not ready, then the least busy, then the youngest."""
    return server.phase is ServerPhase.READY, server.in_flight, -server.created_s


def _is_over(server: Server, drain_s: float, now_s: float) -> bool:
    is_drained = server.in_flight == 0 or now_s >= server.since_s + drain_s
    return server.phase is ServerPhase.DRAINING and is_drained


def next_time(aim: Aim, servers: Sequence[Server], now_s: float) -> float | None:
    """When to plan again although nothing happens."""
    times = [aim.next_start_s] if aim.next_start_s > now_s else []
    times += [s.since_s + aim.rollout.drain_s for s in servers if s.phase is ServerPhase.DRAINING]
    return min(times, default=None)
