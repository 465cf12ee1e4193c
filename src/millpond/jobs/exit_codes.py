"""What the end of a process means under each restart policy. Pure tables; called by `transitions`."""

from __future__ import annotations

from millpond.api.job import RestartPolicy

RETRYABLE = frozenset({130, 137, 138, 143})  # interrupted, killed, asked for by the user (SIGUSR1), terminated
RETRYABLE_REASONS = frozenset({"OOMKilled", "Killed", "Evicted", "UnexpectedAdmissionError", "Lost"})


def is_retryable(exit_code: int, reason: str = "") -> bool:
    """Whether a failure with this code or reason is worth another attempt. Every code outside the table is not."""
    return exit_code in RETRYABLE or reason in RETRYABLE_REASONS


def should_restart(policy: RestartPolicy, exit_code: int, reason: str = "") -> bool:
    """Whether a replica that ended so is started again."""
    match policy:
        case RestartPolicy.ALWAYS:
            return True
        case RestartPolicy.ON_FAILURE:
            return exit_code != 0
        case RestartPolicy.EXIT_CODE:
            return exit_code != 0 and is_retryable(exit_code, reason)
        case RestartPolicy.NEVER:
            return False
