"""Who comes first, and how a step's tokens are shared: the scheduler's decisions as plain functions.

Nothing here has state. A sequence that lacks one token is served before anything else, because a person is reading
it; what is left of the budget goes to prompts. Only the prompts of a burst come before it, and when they do has state:
burst.py. The functions are called by the scheduler and its batch.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from itertools import groupby
from operator import attrgetter

from millpond.inference.sched.state import Sequence

_urgency = attrgetter("urgency")


def insert_by_urgency(sequences: list[Sequence], seq: Sequence) -> None:
    """Puts `seq` into a list that has the most urgent first."""
    insort(sequences, seq, key=_urgency)


def remove_by_urgency(sequences: list[Sequence], seq: Sequence) -> None:
    """Takes `seq`, which must be there, out of a list that has the most urgent first."""
    index = bisect_left(sequences, seq.urgency, key=_urgency)
    assert sequences[index] is seq, f"sequence {seq.seq_id} is not in its list"
    del sequences[index]


def prefill_floor(budget: int) -> int:
    """Tokens of a step that belong to prompts while there are any, however many sequences decode."""
    return max(1, budget // 4)


def prefill_beside(num_decodes: int, prompts: list[Sequence], most: int) -> int:
    """Prompt tokens of a step, at most `most`, in which `num_decodes` others wait for their next token.

    A step computes whole before anyone gets a token, so a long chunk of a prompt makes everybody else wait. 8 for each
    of them take about as long as the step takes without; a prompt needs a few steps more and hardly more time. But a
    burst is done at full speed while more wait for their first token than for their next one, and so is the rest of it
    that fits one step while they are half as many: one long wait is less than many.
    """
    if len(prompts) > num_decodes:
        return most
    if 2 * len(prompts) > num_decodes and sum(seq.num_remaining_tokens for seq in prompts) <= most:
        return most
    return min(most, max(64, 8 * num_decodes))


def rotate(sequences: list[Sequence], turn: int, count: int) -> list[Sequence]:
    """`count` of the sequences, a different stretch each turn, so that everyone is served in the end."""
    first = turn * count % len(sequences)
    return (sequences[first:] + sequences[:first])[:count]


def share_prefill(prefills: list[Sequence], budget: int) -> dict[int, int]:
    """Splits `budget` tokens among prompts, given most urgent first. Returns tokens by sequence id, zeros included.

    A priority gets what more urgent ones leave. Within one, the sequence that came first is sure of half, so it
    always gets through; the rest goes to whoever needs least, so a long prompt never holds up the short ones behind
    it. Prompts of one length are done one after the other.
    """
    grants: dict[int, int] = {}
    for _, group in groupby(prefills, key=attrgetter("priority")):
        members = list(group)
        left = {seq.seq_id: seq.num_remaining_tokens for seq in members}
        first = members[0].seq_id
        grants.update(dict.fromkeys(left, 0))
        sure = min(left[first], (budget + 1) // 2)
        grants[first] = sure
        left[first] -= sure
        budget -= sure
        for seq_id in sorted(left, key=left.__getitem__):
            if not budget:
                break
            extra = min(left[seq_id], budget)
            grants[seq_id] += extra
            budget -= extra
    return grants


def share_budget(
    running: list[Sequence], prompts: list[Sequence], budget: int, turn: int, prompts_first: bool
) -> tuple[dict[int, int], int]:
    """Splits a step's tokens among running sequences, given most urgent first and no more of them than tokens.

    `prompts` are those of them that lack more than one token, and `prompts_first` gives them the whole step. Returns
    tokens by sequence id, one where the id is missing, and how many nobody took.
    """
    if not prompts:
        return {}, budget - len(running)
    if prompts_first:
        return dict.fromkeys((seq.seq_id for seq in running), 0) | share_prefill(prompts, budget), 0
    grants: dict[int, int] = {}
    num_decodes = len(running) - len(prompts)
    most = budget - prefill_floor(budget)
    if num_decodes > most:
        decodes = [seq for seq in running if seq.num_tokens - seq.num_computed_tokens == 1]
        grants = {seq.seq_id: 0 for seq in decodes}
        grants.update((seq.seq_id, 1) for seq in rotate(decodes, turn, most))
        num_decodes = most
    most = budget - num_decodes
    shares = share_prefill(prompts, prefill_beside(num_decodes, prompts, most))
    grants.update(shares)
    return grants, budget - num_decodes - sum(shares.values())
