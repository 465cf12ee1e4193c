"""The shard as a TGI router drives it: batches begun, stepped, joined, cut down; the tokens are those of /generate."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from millpond.serve.proto import generate_pb2 as pb
from tests.support.server_process import ServerProcess
from tests.support.shard_client import ShardClient, make_request

PROMPTS = ["The mill by the pond", "Hello! How are you?", "x", "A small language"]


@pytest.fixture
def shard(server: ServerProcess, socket_prefix: str) -> Iterator[ShardClient]:
    client = ShardClient(f"unix://{socket_prefix}-0")
    yield client
    client.clear()
    client.close()


class Collected:
    """What a router collects of each request."""

    def __init__(self) -> None:
        self.ids: dict[int, list[int]] = {}
        self.done: dict[int, pb.GeneratedText] = {}

    def take(self, reply: Any) -> Any:
        for generation in reply.generations:
            assert len(generation.tokens.ids) == 1
            self.ids.setdefault(generation.request_id, []).extend(generation.tokens.ids)
            if generation.HasField("generated_text"):
                self.done[generation.request_id] = generation.generated_text
        return reply


def generated(http: httpx.Client, inputs: str, max_new_tokens: int, **parameters: Any) -> dict[str, Any]:
    body = {"inputs": inputs, "parameters": {"details": True, "max_new_tokens": max_new_tokens, **parameters}}
    return http.post("/generate", json=body).json()


def ids_of(reply: dict[str, Any]) -> list[int]:
    return [token["id"] for token in reply["details"]["tokens"]]


def test_a_router_finds_the_shard_and_learns_what_it_holds(shard: ShardClient, socket_prefix: str) -> None:
    info = shard.call("Info", pb.InfoRequest())
    assert (info.requires_padding, info.dtype, info.device_type) == (False, "torch.float32", "cpu")
    assert (info.support_chunking, info.use_prefix_caching, info.block_size) == (False, False, 32)
    assert shard.call("ServiceDiscovery", pb.ServiceDiscoveryRequest()).urls == [f"unix://{socket_prefix}-0"]
    assert shard.call("Health", pb.HealthRequest()) == pb.HealthResponse()
    warm = shard.call("Warmup", pb.WarmupRequest(max_prefill_tokens=512))
    assert (warm.max_input_tokens, warm.max_total_tokens) == (1023, 1024)
    assert warm.max_supported_total_tokens >= 1024
    assert stat.S_IMODE(Path(f"{socket_prefix}-0").stat().st_mode) == 0o600


def test_batches_are_joined_and_cut_down_without_changing_a_token(shard: ShardClient, http: httpx.Client) -> None:
    got = Collected()
    first = got.take(shard.prefill(1, make_request(10, PROMPTS[0], 12), make_request(11, PROMPTS[1], 3))).batch
    assert (list(first.request_ids), first.size, first.id) == ([10, 11], 2, 1)
    assert first.max_tokens == first.current_tokens - 2 + 12 + 3
    got.take(shard.decode(1))
    sampled = make_request(12, PROMPTS[2], 9, do_sample=True, temperature=0.8, top_k=40, seed=2**63 + 5)
    got.take(shard.prefill(2, sampled, make_request(13, PROMPTS[3], 30)))

    joined = got.take(shard.decode(1, 2))
    assert [generation.request_id for generation in joined.generations] == [10, 11, 12, 13]
    assert list(joined.batch.request_ids) == [10, 12, 13]  # 11 has its three tokens
    assert joined.HasField("concat_ns")
    cut = shard.filter(1, 12, 10)
    assert list(cut.request_ids) == [12, 10]
    rest = cut
    while rest is not None:
        reply = got.take(shard.decode(1))
        rest = reply.batch if reply.HasField("batch") else None

    wanted = {
        10: generated(http, PROMPTS[0], 12),
        11: generated(http, PROMPTS[1], 3),
        12: generated(http, PROMPTS[2], 9, temperature=0.8, top_k=40, seed=2**63 + 5),
    }
    for name, reply in wanted.items():
        assert got.ids[name] == ids_of(reply)
        assert got.done[name].text == reply["generated_text"]
        assert got.done[name].generated_tokens == len(got.ids[name])
    assert got.done[12].seed == 2**63 + 5
    assert not got.done[10].HasField("seed")
    assert 13 not in got.done
    assert got.ids[13] == ids_of(generated(http, PROMPTS[3], 30))[: len(got.ids[13])]


def test_stop_sequences_and_truncated_prompts_are_those_of_generate(shard: ShardClient, http: httpx.Client) -> None:
    stop = generated(http, "x", 20)["generated_text"][6:9]
    got = Collected()
    reply = got.take(
        shard.prefill(1, make_request(1, "x", 20, stop_sequences=[stop]), make_request(2, PROMPTS[0], 5, truncate=3))
    )
    while reply.HasField("batch"):
        reply = got.take(shard.decode(1))
    stopped = generated(http, "x", 20, stop=[stop])
    assert (got.ids[1], got.done[1].text) == (ids_of(stopped), stopped["generated_text"])
    assert got.done[1].finish_reason == pb.FINISH_REASON_STOP_SEQUENCE
    assert got.ids[2] == ids_of(generated(http, PROMPTS[0], 5, truncate=3))
    assert got.done[2].finish_reason == pb.FINISH_REASON_LENGTH


def test_prompt_tokens_alternatives_and_grammars_come_as_asked(shard: ShardClient, http: httpx.Client) -> None:
    wanted = generated(http, PROMPTS[0], 4, decoder_input_details=True, top_n_tokens=3)["details"]
    [generation] = shard.prefill(1, make_request(1, PROMPTS[0], 4, prefill_logprobs=True, top_n_tokens=3)).generations
    assert list(generation.prefill_tokens.ids) == [token["id"] for token in wanted["prefill"]]
    assert list(generation.prefill_tokens.logprobs)[1:] == pytest.approx(
        [token["logprob"] for token in wanted["prefill"][1:]], rel=1e-6
    )
    assert list(generation.top_tokens[0].ids) == [token["id"] for token in wanted["top_tokens"][0]]
    assert list(generation.tokens.texts) == [wanted["tokens"][0]["text"]]

    got = Collected()
    held = make_request(2, "x", 30, grammar="[0-9]{3}-[a-f]{2}", grammar_type=pb.GRAMMAR_TYPE_REGEX)
    reply = got.take(shard.prefill(2, held))
    while reply.HasField("batch"):
        reply = got.take(shard.decode(2))
    assert re.fullmatch("[0-9]{3}-[a-f]{2}", got.done[2].text)
    assert got.done[2].finish_reason == pb.FINISH_REASON_EOS_TOKEN


def test_a_request_of_one_token_leaves_no_batch(shard: ShardClient) -> None:
    reply = shard.prefill(5, make_request(1, "x", 1))
    assert not reply.HasField("batch")
    assert reply.generations[0].generated_text.generated_tokens == 1
    with pytest.raises(grpc.RpcError, match="Batch ID 5 not found in cache"):
        shard.decode(5)


@pytest.mark.parametrize(
    ("asked", "code", "told"),
    [
        (pb.DecodeRequest(), grpc.StatusCode.INVALID_ARGUMENT, "Must provide at least one batch"),
        (
            pb.DecodeRequest(batches=[pb.CachedBatch(id=99)]),
            grpc.StatusCode.NOT_FOUND,
            "Batch ID 99 not found in cache.",
        ),
        (
            pb.FilterBatchRequest(batch_id=98),
            grpc.StatusCode.NOT_FOUND,
            "Batch ID 98 not found in cache.",
        ),
        (pb.PrefillRequest(), grpc.StatusCode.INVALID_ARGUMENT, "The batch is empty."),
        (
            pb.PrefillRequest(batch=pb.Batch(requests=[make_request(1, "x", adapter_id="a")])),
            grpc.StatusCode.INVALID_ARGUMENT,
            "This shard serves one model without adapters; adapter_id must not be set.",
        ),
        (
            pb.PrefillRequest(batch=pb.Batch(requests=[make_request(1, "x", watermark=True)])),
            grpc.StatusCode.INVALID_ARGUMENT,
            "This shard does not mark its text; watermark must not be set.",
        ),
        (
            pb.PrefillRequest(batch=pb.Batch(requests=[make_request(1, "x"), make_request(1, "y")])),
            grpc.StatusCode.INVALID_ARGUMENT,
            "Two requests of the batch have the same id.",
        ),
        (
            pb.PrefillRequest(batch=pb.Batch(requests=[make_request(1, "x", max_new_tokens=2000)])),
            grpc.StatusCode.INVALID_ARGUMENT,
            "The prompt has 1 tokens and 2000 are asked for",
        ),
        (
            pb.PrefillRequest(batch=pb.Batch(requests=[make_request(1, "x", temperature=-1.0)])),
            grpc.StatusCode.INVALID_ARGUMENT,
            "temperature is -1.",
        ),
        (
            pb.WarmupRequest(max_total_tokens=5000),
            grpc.StatusCode.INVALID_ARGUMENT,
            "max_total_tokens is 5000; this shard takes 1024 at most.",
        ),
    ],
)
def test_calls_that_cannot_be_done_say_why(shard: ShardClient, asked: Any, code: Any, told: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        shard.call(type(asked).__name__.removesuffix("Request"), asked)
    error: Any = caught.value
    assert error.code() == code
    assert error.details().startswith(told)


def test_a_batch_with_one_bad_request_leaves_nothing_running(shard: ShardClient, server: ServerProcess) -> None:
    with pytest.raises(grpc.RpcError):
        shard.prefill(1, make_request(1, "x", 900), make_request(2, "x", 2000))
    with pytest.raises(grpc.RpcError):
        shard.decode(1)
    shard.prefill(2, make_request(1, "x", 900), make_request(2, "y", 900))
    shard.clear(2)
    page = httpx.get(f"{server.url}/metrics", timeout=60).text
    while "millpond_scheduler_running_sequences 0\n" not in page:
        shard.prefill(3, make_request(1, "x", 1))  # a step, after which the engine says again what runs
        page = httpx.get(f"{server.url}/metrics", timeout=60).text
