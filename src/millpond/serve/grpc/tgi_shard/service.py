"""The eight calls of `generate.v3.TextGenerationService`, as messages in and messages out.

Translates only: `batches.py` does the work. Called by `port.py`, which gives `ShardError`s their status.
"""

from __future__ import annotations

import time

from millpond.api.request import GrammarSpec, Request
from millpond.base.errors import RequestError
from millpond.serve.gateway import Engine, Gateway
from millpond.serve.grpc.tgi_shard.batches import ShardBatches
from millpond.serve.grpc.tgi_shard.errors import ShardError
from millpond.serve.grpc.tgi_shard.requests import is_sampled, make_request
from millpond.serve.grpc.tgi_shard.sequences import ShardSequence, Step
from millpond.serve.proto import generate_pb2 as pb

_REASONS = {
    "length": pb.FINISH_REASON_LENGTH,
    "eos_token": pb.FINISH_REASON_EOS_TOKEN,
    "stop_sequence": pb.FINISH_REASON_STOP_SEQUENCE,
}


class ShardService:
    """One shard.

    Args:
        gateway: Has the engine.
        url: Where this shard is found.
    """

    def __init__(self, gateway: Gateway, url: str) -> None:
        self._gateway = gateway
        self._url = url
        self.batches = ShardBatches()

    async def info(self, request: pb.InfoRequest) -> pb.InfoResponse:
        """Says what the router's accounting needs to know: tokens in blocks, nothing padded, no chunks."""
        info = self._gateway.ready_engine().info
        return pb.InfoResponse(
            requires_padding=False,
            dtype=f"torch.{info.dtype}",
            device_type="cpu",
            speculate=0,
            support_chunking=False,
            use_prefix_caching=False,  # ours is the engine's own; the router must not count on its own tree
            attention_impl="paged",
            block_size=info.block_size,
        )

    async def discover(self, request: pb.ServiceDiscoveryRequest) -> pb.ServiceDiscoveryResponse:
        """Names all shards: this one."""
        return pb.ServiceDiscoveryResponse(urls=[self._url])

    async def health(self, request: pb.HealthRequest) -> pb.HealthResponse:
        """Succeeds while the engine works."""
        if self._gateway.status != "ready":
            raise ShardError("unavailable", f"The engine is {self._gateway.status}.")
        return pb.HealthResponse()

    async def clear_cache(self, request: pb.ClearCacheRequest) -> pb.ClearCacheResponse:
        """Forgets a batch, or all."""
        await self.batches.clear(request.id if request.HasField("id") else None)
        return pb.ClearCacheResponse()

    async def filter_batch(self, request: pb.FilterBatchRequest) -> pb.FilterBatchResponse:
        """Keeps some requests of a batch."""
        kept = await self.batches.filter(request.batch_id, request.request_ids)
        return pb.FilterBatchResponse(batch=_cached(request.batch_id, kept))

    async def warmup(self, request: pb.WarmupRequest) -> pb.WarmupResponse:
        """Says how many tokens the cache holds. The engine measured its memory when it started: nothing is run."""
        info = self._gateway.ready_engine().info
        holds = info.num_blocks * info.block_size
        longest = min(info.max_model_len, holds + 1)
        total = request.max_total_tokens if request.HasField("max_total_tokens") else longest
        if not 1 < total <= longest:
            raise ShardError("invalid", f"max_total_tokens is {total}; this shard takes {longest} at most.")
        most = request.max_input_tokens if request.HasField("max_input_tokens") else total - 1
        if not 0 < most < total:
            raise ShardError("invalid", f"max_input_tokens is {most}; it has to be less than {total}.")
        return pb.WarmupResponse(max_supported_total_tokens=holds, max_input_tokens=most, max_total_tokens=total)

    async def prefill(self, request: pb.PrefillRequest) -> pb.PrefillResponse:
        """Begins a batch."""
        if request.HasField("cached_batch"):
            raise ShardError("invalid", "cached_batch needs chunked prefill, which this shard does not announce.")
        started_ns = time.perf_counter_ns()
        batch = request.batch
        if not batch.requests:
            raise ShardError("invalid", "The batch is empty.")
        engine = self._gateway.ready_engine()
        asked = await self._gateway.in_thread(lambda: self._requests(engine, batch))
        told = await self.batches.prefill(batch.id, engine, asked)
        taken_ns = time.perf_counter_ns() - started_ns
        rest = self.batches.sequences(batch.id)
        return pb.PrefillResponse(
            generations=[_generation(sequence, step) for sequence, step in told],
            batch=_cached(batch.id, rest) if rest else None,
            forward_ns=taken_ns,
            total_ns=taken_ns,
        )

    async def decode(self, request: pb.DecodeRequest) -> pb.DecodeResponse:
        """Gives every sequence of some batches a token, and makes one batch of them."""
        started_ns = time.perf_counter_ns()
        ids = [batch.id for batch in request.batches]
        told = await self.batches.decode(ids)
        taken_ns = time.perf_counter_ns() - started_ns
        rest = self.batches.sequences(ids[0])
        return pb.DecodeResponse(
            generations=[_generation(sequence, step) for sequence, step in told],
            batch=_cached(ids[0], rest) if rest else None,
            forward_ns=taken_ns,
            total_ns=taken_ns,
            concat_ns=0 if len(ids) > 1 else None,
        )

    def _requests(self, engine: Engine, batch: pb.Batch) -> list[tuple[int, Request, int | None]]:
        names = [asked.id for asked in batch.requests]
        if len(set(names)) < len(names):
            raise ShardError("invalid", "Two requests of the batch have the same id.")
        deadline_s = self._gateway.settings.request_timeout_s
        made = []
        for asked in batch.requests:
            name = f"shard-{batch.id}-{asked.id}"
            request = make_request(asked, engine.text.tokenizer, name=name, deadline_s=deadline_s)
            self._check_grammar(engine, request.params.grammar)
            made.append((asked.id, request, asked.parameters.seed if is_sampled(asked.parameters) else None))
        return made

    def _check_grammar(self, engine: Engine, grammar: GrammarSpec | None) -> None:
        if grammar is None:
            return
        try:
            self._gateway.grammars(engine).check(grammar)
        except RequestError as error:
            raise ShardError("invalid", f"The grammar is not valid: {error}") from error


def _generation(sequence: ShardSequence, step: Step) -> pb.Generation:
    generation = pb.Generation(
        request_id=sequence.id,
        tokens=pb.Tokens(
            ids=[step.token.id],
            logprobs=[step.token.logprob],
            texts=[step.token.text],
            is_special=[step.token.special],
        ),
    )
    if step.prefill:
        generation.prefill_tokens.CopyFrom(
            pb.Tokens(
                ids=[token.id for token in step.prefill],
                logprobs=[float("nan") if token.logprob is None else token.logprob for token in step.prefill],
                texts=[token.text for token in step.prefill],
                is_special=[],
            )
        )
    if step.top:
        generation.top_tokens.append(
            pb.Tokens(
                ids=[token.id for token in step.top],
                logprobs=[token.logprob for token in step.top],
                texts=[token.text for token in step.top],
                is_special=[token.special for token in step.top],
            )
        )
    if step.finish_reason is not None:
        generation.generated_text.CopyFrom(
            pb.GeneratedText(
                text=step.text,
                generated_tokens=step.num_tokens,
                finish_reason=_REASONS[step.finish_reason],
                seed=sequence.seed,
            )
        )
    return generation


def _cached(id: int, sequences: list[ShardSequence]) -> pb.CachedBatch:
    return pb.CachedBatch(
        id=id,
        request_ids=[sequence.id for sequence in sequences],
        size=len(sequences),
        max_tokens=sum(sequence.max_tokens for sequence in sequences),
        current_tokens=sum(sequence.num_tokens for sequence in sequences),
    )
