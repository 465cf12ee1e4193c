"""What can be known about a sequence before it is queued: whether it could ever finish here.

A plain function of the sequence, the limits and the size of the pool, so that nothing which can never fit reaches the
step loop. Called by `Scheduler.add`; the engine's admission may call it earlier.
"""

from __future__ import annotations

from millpond.base.errors import ContextLengthError, RequestError
from millpond.inference.kv import BlockPool
from millpond.inference.sched.state import SchedulerLimits, Sequence


def check_fits(seq: Sequence, limits: SchedulerLimits, pool: BlockPool) -> None:
    """Sets where the sequence ends at the latest, and sees that the pool could hold it with nobody else there.

    Raises:
        RequestError: The prompt is empty.
        ContextLengthError: The prompt leaves no room for output, or the pool is too small.
    """
    longest, num_prompt = limits.max_model_len, seq.num_prompt_tokens
    if not num_prompt:
        raise RequestError("The prompt has no tokens.", fix="Send one token at least.", param="prompt")
    least = num_prompt + min(seq.max_tokens, 1)
    if least > longest:
        raise ContextLengthError(
            f"The prompt has {num_prompt} tokens and leaves no room for output in a context of {longest}.",
            fix="Shorten the prompt.",
            param="prompt",
        )
    seq.max_total_tokens = min(num_prompt + seq.max_tokens, longest)
    # The last token is sampled and never computed.
    num_computed = max(num_prompt, seq.max_total_tokens - 1)
    if pool.blocks_for(num_computed) > pool.num_blocks:
        raise ContextLengthError(
            f"{num_prompt} prompt tokens and up to {seq.max_total_tokens - num_prompt} of output need more than the"
            f" {pool.num_blocks * pool.block_size} tokens of the KV cache.",
            fix="Ask for fewer tokens, or give the cache more memory (cache.bytes).",
            param="max_tokens",
        )
