"""The scheduler: which tokens of which sequences the next step computes. Pure: no torch, no clock, no randomness.

Driven by the engine with a real executor and by the planner with a cost model.
"""

from millpond.inference.sched.scheduler import Scheduler
from millpond.inference.sched.state import SchedulerLimits, Sequence, SequenceStatus
from millpond.inference.sched.step import FinishedSequence, SchedulerStats, StepEntry, StepPlan, StepResult
from millpond.inference.sched.trace import ReplayError, TransitionLog, replay

__all__ = [
    "FinishedSequence",
    "ReplayError",
    "Scheduler",
    "SchedulerLimits",
    "SchedulerStats",
    "Sequence",
    "SequenceStatus",
    "StepEntry",
    "StepPlan",
    "StepResult",
    "TransitionLog",
    "replay",
]
