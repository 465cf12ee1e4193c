"""What the operator must not forget about a job, as a Reservation object beside it.

The readable part says which devices on which nodes are held; the record is the controller's whole state of the job. The
object is written before anything is started or stopped, at the version that was read: a second operator that believes
to lead is refused by the API server. Pure. Called by the operator.
"""

from __future__ import annotations

import base64
import json
import zlib

import msgspec

from millpond.jobs.clusters.kubernetes.documents import JobObject
from millpond.jobs.clusters.kubernetes.kinds import RESERVATIONS, Object, owner_of
from millpond.jobs.clusters.kubernetes.pods import PREFIX, UID
from millpond.jobs.clusters.kubernetes.reports import show_time
from millpond.jobs.state import JobState

HELD = f"{PREFIX}/held"
_MAX_RECORD = 64 << 20


def record_name(kind: str, job_name: str) -> str:
    """The name of a job's Reservation: two kinds may have jobs of one name."""
    return f"{kind.lower()}.{job_name}"


def needs_record(state: JobState) -> bool:
    """Whether anything is known that the job's object does not say itself."""
    has_tried = any(run.attempt for run in state.all_runs)
    return state.reservation is not None or state.eviction_epoch > 0 or has_tried or state.is_final


def make_record(job: JobObject, state: JobState, leader: str, old: Object | None) -> Object:
    """The Reservation as it should be; `old` as it is."""
    held = state.reservation
    spec: Object = {
        "job": {"apiVersion": job.body["apiVersion"], "kind": job.body["kind"], "name": job.spec.name},
        "tenant": state.spec.tenant,
        "epoch": state.eviction_epoch if held is None else held.epoch,
        "leader": leader,
        "placements": [],
        "record": base64.b85encode(zlib.compress(msgspec.json.encode(state))).decode(),
    }
    if held is not None:
        spec["expires"] = show_time(min(held.expires_s, 253402300799.0))
        spec["placements"] = [
            {"role": role, "node": one.node, "devices": list(one.device_ids), "rank": one.rank,
             "numRanks": one.num_ranks}
            for role, found in held.placements.items()
            for one in found
        ]  # fmt: skip
    metadata: Object = {
        "name": record_name(job.body["kind"], job.spec.name),
        "namespace": job.namespace,
        "labels": {UID: state.uid},
        "finalizers": [HELD],
        "ownerReferences": [owner_of(job.body)],
    }
    if old is not None:
        metadata["resourceVersion"] = old["metadata"]["resourceVersion"]
    return {"apiVersion": RESERVATIONS.api_version, "kind": RESERVATIONS.kind, "metadata": metadata, "spec": spec}


def read_record(reservation: Object) -> JobState | None:
    """The state that was written down, or None when it cannot be read."""
    try:
        packed = base64.b85decode(reservation["spec"]["record"])
        text = zlib.decompressobj().decompress(packed, _MAX_RECORD)
        return msgspec.json.decode(text, type=JobState)
    except (KeyError, TypeError, ValueError, zlib.error, msgspec.MsgspecError, json.JSONDecodeError):
        return None
