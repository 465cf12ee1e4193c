"""`PendingQueue`: whose turn it is.

Owns the order of waiting jobs: those inside their guarantee first, then priority, then the tenant with the smallest
weighted share, then the longest wait; spot jobs last. Jobs of one tenant, priority and shape wait in one bucket, so
that a pass over ten thousand jobs looks at some hundred buckets. Knows nothing of cells.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field

from millpond.jobs.scheduling.quota import QuotaTree
from millpond.jobs.scheduling.state import JobState
from millpond.jobs.scheduling.types import GangRequest

Turn = tuple[bool, bool, int, tuple[float, ...], float, int]
BucketKey = tuple[str, bool, int, int]  # tenant, spot, -priority, shape
Place = tuple[float, int, str]  # turn in its tenant, number, job id

# An aggregated job lets those pass that come up to this share of its predicted device-seconds later.
_YIELDED = 0.125


@dataclass(slots=True)
class Bucket:
    """Waiting jobs that differ only in when they came and how long they take."""

    key: BucketKey
    places: list[Place] = field(default_factory=list)
    shortest: tuple[int, float] | None = None  # of the first so many places, the shortest estimate


class PendingQueue:
    """Buckets of waiting jobs and the order between them."""

    def __init__(self, quota: QuotaTree, jobs: dict[str, JobState]) -> None:
        self._quota = quota
        self._jobs = jobs
        self._buckets: dict[BucketKey, Bucket] = {}
        self._standing: dict[BucketKey, tuple[tuple[int, int], bool, tuple[float, ...]]] = {}
        self._skipped: set[BucketKey] = set()

    def __len__(self) -> int:
        return sum(len(bucket.places) for bucket in self._buckets.values())

    def add(self, job: JobState) -> None:
        """Queues a job at the place its submission and, aggregated, its predicted size give it."""
        key = _key(job)
        bucket = self._buckets.setdefault(key, Bucket(key))
        insort(bucket.places, (_turn_s(job.request), job.number, job.request.job_id))
        bucket.shortest = None

    def remove(self, job: JobState) -> None:
        """Takes a job out; one that is not queued is left alone."""
        bucket = self._buckets.get(_key(job))
        if bucket is None:
            return
        place = (_turn_s(job.request), job.number, job.request.job_id)
        at = bisect_left(bucket.places, place)
        if at < len(bucket.places) and bucket.places[at] == place:
            bucket.places.pop(at)
            bucket.shortest = None
            if not bucket.places:
                del self._buckets[bucket.key]
                self._standing.pop(bucket.key, None)

    def walk(self) -> Iterator[tuple[JobState, Bucket]]:
        """Yields jobs in turn. A bucket goes on with its next job only after `skip` was not called for it.

        Shares are read again whenever a job comes up, so a tenant that was just served steps back.
        """
        heap = [(self._turn(bucket, 0), bucket.key, 0) for bucket in self._buckets.values()]
        heapq.heapify(heap)
        skipped = self._skipped = set()
        is_one = not self._quota.tenants  # then no turn changes
        while heap:
            turn, key, at = heapq.heappop(heap)
            bucket = self._buckets.get(key)
            if bucket is None or key in skipped or at >= len(bucket.places):
                continue
            if not is_one:
                current = self._turn(bucket, at)
                if heap and current > heap[0][0] and current > turn:
                    heapq.heappush(heap, (current, key, at))
                    continue
            place = bucket.places[at]
            yield self._jobs[place[2]], bucket
            if key in skipped:
                continue
            if at < len(bucket.places) and bucket.places[at] == place:
                at += 1  # still waiting: on with the next one
            if at < len(bucket.places):
                place = bucket.places[at]
                turn = (key[1], False, key[2], (), place[0], place[1]) if is_one else self._turn_at(key, place)
                heapq.heappush(heap, (turn, key, at))

    def skip(self, bucket: Bucket) -> None:
        """Leaves the rest of a bucket out of the walk that is going on."""
        self._skipped.add(bucket.key)

    def bucket_of(self, job: JobState) -> Bucket:
        """The bucket in which a job waits."""
        return self._buckets[_key(job)]

    def has_shorter(self, bucket: Bucket, than_s: float, scan: int) -> bool:
        """Whether one of the first jobs of a bucket says that it takes less time."""
        known = bucket.shortest
        if known is None or known[0] != scan:
            estimates = (self._jobs[place[2]].length_s for place in bucket.places[:scan])
            known = bucket.shortest = (scan, min(estimates, default=float("inf")))
        return known[1] < than_s

    def order(self) -> list[str]:
        """All waiting jobs by turn, as if nobody was served in between."""
        turns = [(self._turn(b, at), place[2]) for b in self._buckets.values() for at, place in enumerate(b.places)]
        return [job_id for _, job_id in sorted(turns)]

    def turn_of(self, job: JobState) -> Turn:
        """The sort key of one job."""
        return self._turn_at(_key(job), (_turn_s(job.request), job.number, job.request.job_id))

    def _turn(self, bucket: Bucket, at: int) -> Turn:
        return self._turn_at(bucket.key, bucket.places[at])

    def _turn_at(self, key: BucketKey, place: Place) -> Turn:
        tenant, spot, minus_priority, _ = key
        if not self._quota.tenants:
            return (spot, False, minus_priority, (), place[0], place[1])
        version = (self._quota.tree_version, self._quota.version_of(tenant))
        known = self._standing.get(key)
        if known is None or known[0] != version:
            outside = not self._quota.within_guarantee(tenant, self._jobs[place[2]].demand)
            known = self._standing[key] = (version, outside, self._quota.shares(tenant))
        return (spot, known[1], minus_priority, known[2], place[0], place[1])


def _turn_s(request: GangRequest) -> float:
    """Submission; later for an aggregated job, by its size. It leaves shape and start to predictions, others do not."""
    step = request.step
    if request.aggregation is None or step is None:
        return request.submitted_s
    devices = sum(role.replicas * role.resources.devices for role in request.roles)
    return request.submitted_s + _YIELDED * devices * step.compute_s * step.num_steps


def _key(job: JobState) -> BucketKey:
    request = job.request
    return (request.tenant, request.spot, -request.priority, job.shape)
