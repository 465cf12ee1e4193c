"""What a pod says about the run in it. Pure; called by `cluster`.

The end of the main container counts, whatever sidecars do. A pod that ends without one (refused by the kubelet,
evicted, its node lost) has its reason for a code.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from millpond.jobs.clusters.kubernetes.kinds import Object
from millpond.jobs.exit_codes import RETRYABLE_REASONS

KILLED, REFUSED = 137, 128


@dataclass(frozen=True, slots=True)
class PodNews:
    """How far a pod has come.

    Attributes:
        has_started: Its main container runs or ran.
        exit_code: None while it has not ended.
    """

    has_started: bool = False
    started_s: float | None = None
    exit_code: int | None = None
    ended_s: float | None = None
    reason: str = ""


def read_pod_news(pod: Object, container: str) -> PodNews:
    """How far the pod has come; `container` is the main one's name."""
    status: Object = pod.get("status") or {}
    main = _container_status(status, container)
    state: Object = main.get("state") or {}
    ended: Object | None = state.get("terminated")
    reason = str(status.get("reason") or "")
    started = (ended or state.get("running") or {}).get("startedAt")
    started_s = read_time(started)
    if ended is not None:
        code, why = int(ended.get("exitCode") or 0), str(ended.get("reason") or "")
        if code and reason in RETRYABLE_REASONS:
            why = reason
        return PodNews(True, started_s, code, read_time(ended.get("finishedAt")), "" if why == "Error" else why)
    if status.get("phase") == "Failed":
        code = KILLED if reason in RETRYABLE_REASONS else REFUSED
        message = str(status.get("message") or "")
        return PodNews(False, None, code, None, reason or message[:200] or "Failed")
    if status.get("phase") == "Succeeded":
        return PodNews(True, started_s, 0)
    if _is_gone(pod):
        return PodNews(state.get("running") is not None, started_s, KILLED, None, "Killed")
    return PodNews("running" in state, started_s)


def read_time(text: Any) -> float | None:
    """Seconds since the epoch, of a time as the API server writes it."""
    if not isinstance(text, str):
        return None
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def show_time(at_s: float) -> str:
    """A time as the API server reads it."""
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _is_gone(pod: Object) -> bool:
    """Deleted for good: only finalizers keep the object, no kubelet has a process of it any more."""
    metadata = pod["metadata"]
    return bool(metadata.get("deletionTimestamp")) and metadata.get("deletionGracePeriodSeconds", 0) == 0


def _container_status(status: Object, container: str) -> Object:
    found: list[Object] = status.get("containerStatuses") or []
    return next((one for one in found if one.get("name") == container), found[0] if len(found) == 1 else {})
