"""`Burst`: whether the prompts of a burst go first, while those that have begun to answer wait for their next token.

A person who reads a stream loses the same time either way: a burst's prompts take as long as they take. Beside steps
that compute prompts every token of everyone is late; before them one token is, once. And sequences whose prompts went
first decode together, in full batches. Owned by the scheduler; pure: time comes in as an argument.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

from millpond.inference.sched.state import Sequence

LONGEST_S = 3.0  # what a reader loses to one burst at most


class Burst:
    """Decides, step by step, whether decoding sequences wait.

    They begin to wait when more sequences lack a prompt than a next token, and the prompts are more than one step
    computes beside them, but each is less than a step: every step then brings a first token to someone. It lasts until
    no prompt is left, or for `LONGEST_S`; then no one waits again before all prompts are done, so a stream of prompts
    never stops those who decode. Nobody waits for a lower class, or for a prompt that memory has no room for.
    """

    def __init__(self) -> None:
        self._began_s: float | None = None

    def goes_first(
        self, running: SequenceOf[Sequence], prompts: SequenceOf[Sequence], budget: int, room: int, now_s: float
    ) -> bool:
        """Whether this step computes prompts only.

        Args:
            running: All of them, most urgent first.
            prompts: Those of them that lack more than one token, in the same order.
            budget: Most tokens of a step.
            room: Tokens that free blocks hold.
            now_s: The time.
        """
        if not prompts:
            self._began_s = None
            return False
        num_decodes = len(running) - len(prompts)
        missing = [seq.num_remaining_tokens for seq in prompts]
        num_missing = sum(missing)
        if not num_decodes or num_missing > room:
            return False
        if self._began_s is None:
            if len(prompts) <= num_decodes or max(missing) > budget or num_missing <= budget - num_decodes:
                return False
            self._began_s = now_s
        if now_s - self._began_s >= LONGEST_S:
            return False
        # Most urgent first: the last prompt is of the lowest class among them.
        lowest = prompts[-1].priority
        return lowest <= running[0].priority or all(
            seq.priority >= lowest for seq in running if seq.num_remaining_tokens == 1
        )
