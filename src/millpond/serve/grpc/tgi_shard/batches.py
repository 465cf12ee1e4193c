"""`ShardBatches`: a router's batches by their ids: begun, stepped, joined, cut down, forgotten.

A batch is a list of sequences, which the engine runs in its own continuous batch; joining and cutting batches moves
names only. Every call takes a batch out and puts it back when it has worked, so a failed or abandoned call leaves
nothing behind. Knows the engine, and no messages.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from millpond.api.request import Request
from millpond.serve.gateway import Engine
from millpond.serve.grpc.tgi_shard.errors import ShardError
from millpond.serve.grpc.tgi_shard.sequences import ShardSequence, Step


class ShardBatches:
    """The batches of one router."""

    def __init__(self) -> None:
        self._batches: dict[int, list[ShardSequence]] = {}

    @property
    def num_sequences(self) -> int:
        """Sequences in all batches."""
        return sum(len(batch) for batch in self._batches.values())

    async def prefill(
        self, id: int, engine: Engine, asked: Sequence[tuple[int, Request, int | None]]
    ) -> list[tuple[ShardSequence, Step]]:
        """Begins a batch and gives each sequence its first token.

        Args:
            id: The batch's name. A batch that had it is forgotten.
            engine: Where to run it.
            asked: Per request its name, itself, and the seed that is told.

        Raises:
            ShardError: There are too many.
            MillpondError: The engine refuses one of them.
        """
        await self.clear(id)
        places = engine.info.max_sequences + engine.info.max_queue
        if self.num_sequences + len(asked) > places:
            raise ShardError("full", f"The shard holds {places} requests at a time.")
        tokenizer = engine.text.tokenizer
        batch: list[ShardSequence] = []
        try:
            for name, request, seed in asked:
                events = engine.generate(request)
                batch.append(ShardSequence(name, request, events, tokenizer=tokenizer, seed=seed))
        except BaseException:
            await _close(batch)
            raise
        return await self._step(id, batch)

    async def decode(self, ids: Sequence[int]) -> list[tuple[ShardSequence, Step]]:
        """Joins batches under the first one's name and gives each sequence a token.

        Raises:
            ShardError: One of them does not exist, or all are empty.
            MillpondError: The engine could not go on with one of the sequences; all are forgotten then.
        """
        if not ids:
            raise ShardError("invalid", "Must provide at least one batch")
        for id in ids:
            if id not in self._batches:
                raise _not_found(id)
        batch = [sequence for id in dict.fromkeys(ids) for sequence in self._batches.pop(id)]
        if not batch:
            raise ShardError("invalid", "All batches are empty")
        return await self._step(ids[0], batch)

    async def filter(self, id: int, keep: Sequence[int]) -> list[ShardSequence]:
        """Keeps the named requests of a batch, in that order, and ends the others.

        Raises:
            ShardError: There is no such batch, or no such request in it.
        """
        batch = self._batches.get(id)
        if batch is None:
            raise _not_found(id)
        by_name = {sequence.id: sequence for sequence in batch}
        missing = next((name for name in keep if name not in by_name), None)
        if missing is not None:
            raise ShardError("not_found", f"Request ID {missing} not found in batch {id}.")
        kept = [by_name[name] for name in dict.fromkeys(keep)]
        self._batches[id] = kept
        names = {sequence.id for sequence in kept}
        await _close([sequence for sequence in batch if sequence.id not in names])
        return kept

    async def clear(self, id: int | None) -> None:
        """Forgets a batch, or all; one that is not known is fine."""
        ids = list(self._batches) if id is None else [id]
        for name in ids:
            await _close(self._batches.pop(name, []))

    def sequences(self, id: int) -> list[ShardSequence]:
        """Returns the sequences of a batch that have not ended; none when it is gone."""
        return self._batches.get(id, [])

    async def _step(self, id: int, batch: list[ShardSequence]) -> list[tuple[ShardSequence, Step]]:
        tasks = [asyncio.ensure_future(sequence.step()) for sequence in batch]
        try:
            steps = await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await _close(batch)
            raise
        told = list(zip(batch, steps, strict=True))
        await _close([sequence for sequence, step in told if step.finish_reason is not None])
        rest = [sequence for sequence, step in told if step.finish_reason is None]
        if rest:
            await self.clear(id)  # another call may have begun it again meanwhile
            self._batches[id] = rest
        return told


def _not_found(id: int) -> ShardError:
    return ShardError("not_found", f"Batch ID {id} not found in cache.")


async def _close(sequences: Sequence[ShardSequence]) -> None:
    for sequence in sequences:
        await sequence.close()
