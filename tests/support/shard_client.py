"""A TGI router's side of the shard contract: a channel, its eight calls, and requests with TGI's defaults."""

from __future__ import annotations

from typing import Any

import grpc

from millpond.serve.proto import generate_pb2 as pb

SERVICE = "/generate.v3.TextGenerationService/"


class ShardClient:
    """Calls a shard on its socket. `calls.Prefill(pb.PrefillRequest(...))` and so on."""

    def __init__(self, url: str) -> None:
        self.channel = grpc.insecure_channel(url.replace("unix://", "unix:"))

    def call(self, name: str, request: Any) -> Any:
        reply = getattr(pb, type(request).__name__.replace("Request", "Response"))
        method = self.channel.unary_unary(
            SERVICE + name, request_serializer=type(request).SerializeToString, response_deserializer=reply.FromString
        )
        return method(request, timeout=60)

    def prefill(self, batch_id: int, *requests: pb.Request) -> pb.PrefillResponse:
        batch = pb.Batch(id=batch_id, requests=requests, size=len(requests), max_tokens=1000)
        return self.call("Prefill", pb.PrefillRequest(batch=batch))

    def decode(self, *ids: int) -> pb.DecodeResponse:
        return self.call("Decode", pb.DecodeRequest(batches=[pb.CachedBatch(id=id) for id in ids]))

    def filter(self, batch_id: int, *keep: int) -> pb.CachedBatch:
        return self.call("FilterBatch", pb.FilterBatchRequest(batch_id=batch_id, request_ids=keep)).batch

    def clear(self, batch_id: int | None = None) -> None:
        self.call("ClearCache", pb.ClearCacheRequest(id=batch_id))

    def close(self) -> None:
        self.channel.close()


def make_request(id: int, inputs: str, max_new_tokens: int = 10, **changes: Any) -> pb.Request:
    """A request as a router sends it; `changes` are fields of it, its parameters or stopping parameters."""
    parameters = {"temperature": 1.0, "top_p": 1.0, "typical_p": 1.0, "repetition_penalty": 1.0, "seed": 7}
    stopping: dict[str, Any] = {"max_new_tokens": max_new_tokens}
    request: dict[str, Any] = {"id": id, "truncate": 1000, "add_special_tokens": True, "inputs": inputs}
    request["input_chunks"] = pb.Input(chunks=[pb.InputChunk(text=inputs)])
    for name, value in changes.items():
        if name in pb.NextTokenChooserParameters.DESCRIPTOR.fields_by_name:
            parameters[name] = value
        elif name in pb.StoppingCriteriaParameters.DESCRIPTOR.fields_by_name:
            stopping[name] = value
        else:
            request[name] = value
    return pb.Request(
        parameters=pb.NextTokenChooserParameters(**parameters),
        stopping_parameters=pb.StoppingCriteriaParameters(**stopping),
        **request,
    )
