"""Hostile clients of the protocols over gRPC: Triton, MindSpore Serving, a TGI router."""

from __future__ import annotations

import asyncio
import random
import struct
from abc import abstractmethod
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from millpond.serve.proto import generate_pb2, inference_pb2, ms_service_pb2
from tests.support.fuzzing.base import BAD_SHARE, Fuzzer
from tests.support.fuzzing.mutation import NAMES, mutate_bytes, mutate_message
from tests.support.fuzzing.rooms import NAME
from tests.support.fuzzing.web import connect
from tests.support.shard_client import make_request

Code = grpc.StatusCode
SMALL_BYTES = 4 << 20  # the server was told to take no more
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
FRAMES = (
    b"",
    SETTINGS,
    SETTINGS * 50,
    b"\x00\x00\x08\x06\x00\x00\x00\x00\x00abcdefgh" * 20,  # pings
    b"\xff\xff\xff\x00\x00\x00\x00\x00\x01",  # data of 16 MiB that never comes
    b"\x00\x00\x04\x01\x04\x00\x00\x00\x01\xff\xff\xff\xff",  # headers that are none
    b"\x00\x00\x05\x01\x00\x00\x00\x00\x01\x82\x86\x84\x41\x8a",  # headers without an end
    b"\x00\x00\x04\x03\x00\x00\x00\x00\x01\x00\x00\x00\x08",  # reset of a stream that is not there
    b"\x00\x00\x04\x08\x00\x00\x00\x00\x00\x7f\xff\xff\xff" * 3,  # window beyond its limit
    b"GET / HTTP/1.1\r\n\r\n",
)


class GrpcFuzzer(Fuzzer):
    """A service over gRPC; messages are sent as bytes.

    Args:
        address: As `grpc` takes it.
    """

    service: str
    malformed: Code
    codes: frozenset[Code]
    internal: tuple[str, ...] = ()  # what the original calls an internal error

    def __init__(self, address: str) -> None:
        super().__init__()
        self.address = address
        self.channel = grpc.aio.insecure_channel(address)

    @abstractmethod
    def make(self, rng: random.Random) -> tuple[str, type[Message], bytes]:
        """Returns a method, the message it takes, and bytes that may be one."""

    def judge(self, method: str, data: bytes, reply: bytes) -> None:
        """Asserts that a reply is one that this method may give."""

    async def send(self, rng: random.Random) -> None:
        if rng.random() < BAD_SHARE / 2:
            await self._break(rng)
            return
        method, kind, data = self.make(rng)
        call = self._call(method, data)
        if rng.random() < BAD_SHARE / 2:
            await asyncio.sleep(rng.random() * 0.01)
            call.cancel()
            self.seen["cancelled"] += 1
            return
        try:
            replies = [reply async for reply in call] if hasattr(call, "__aiter__") else [await call]
            for reply in replies:
                self.judge(method, data, reply)
            code = Code.OK
        except grpc.aio.AioRpcError as error:
            code, details = error.code(), error.details()
            allowed = self.codes if is_message(kind, data) else {self.malformed, Code.UNIMPLEMENTED}
            if len(data) > SMALL_BYTES:
                allowed = {*allowed, Code.RESOURCE_EXHAUSTED, Code.INTERNAL}  # the latter in streams: gRPC's own
            is_known = code is Code.INTERNAL and any(text in (details or "") for text in self.internal)
            assert code in allowed or is_known, f"{self.name}: {method} {data[:400]!r} -> {code} {details}"
        self.seen[code.name] += 1

    def _call(self, method: str, data: bytes) -> Any:
        return self.channel.unary_unary(f"/{self.service}/{method}")(data, timeout=300)

    async def _break(self, rng: random.Random) -> None:
        """Speaks HTTP/2 wrongly, or begins and leaves."""
        _, writer = await connect(self.address)
        try:
            data = b"".join((PREFACE, SETTINGS, rng.choice(FRAMES), rng.choice(FRAMES)))
            writer.write(mutate_bytes(rng, data) if rng.random() < 0.3 else data)
            if rng.random() < 0.5 and writer.can_write_eof():
                writer.write_eof()
            await asyncio.sleep(rng.random() * 0.02)
        except OSError:
            pass  # closed on us, as it may
        finally:
            writer.close()
        self.seen["broken"] += 1

    async def close(self) -> None:
        await self.channel.close()


def is_message(kind: type[Message], data: bytes) -> bool:
    """Whether bytes are a message at all."""
    try:
        kind.FromString(data)
    except DecodeError:
        return False
    return True


class TritonGrpc(GrpcFuzzer):
    """Infer, the stream of infer, repository, memory, settings."""

    name = "Triton gRPC"
    service = "inference.GRPCInferenceService"
    malformed = Code.INTERNAL
    codes = frozenset(
        (Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.UNIMPLEMENTED, Code.UNAVAILABLE, Code.ALREADY_EXISTS)
    )
    internal = ("failed to poll from model repository", "Unable to open shared memory region")

    def make(self, rng: random.Random) -> tuple[str, type[Message], bytes]:
        pb = inference_pb2
        pick = rng.random()
        if pick < 0.6:
            good: Message = self.request()
            method = "ModelInfer" if pick < 0.45 else "ModelStreamInfer"
            if method == "ModelStreamInfer" and rng.random() < 0.3:
                good = self.text()
        else:
            name = rng.choice(NAMES)
            load = pb.RepositoryModelLoadRequest(model_name=name)
            load.parameters["config"].string_param = "{}"
            load.parameters[f"file:{rng.choice(NAMES)}"].bytes_param = b"hi"
            trace = pb.TraceSettingRequest(model_name="calc")
            trace.settings["trace_rate"].value.append("1")
            log = pb.LogSettingsRequest()
            log.settings["log_verbose_level"].uint32_param = 0
            good = rng.choice((
                load, pb.RepositoryModelUnloadRequest(model_name=name), pb.RepositoryIndexRequest(repository_name=name),
                pb.ModelMetadataRequest(name=name, version="1"), pb.ModelConfigRequest(name=name, version="-1"),
                pb.ModelReadyRequest(name=name), pb.ModelStatisticsRequest(name=name), trace, log,
                pb.SystemSharedMemoryRegisterRequest(name=name, key=name, offset=0, byte_size=2**62),
                pb.SystemSharedMemoryUnregisterRequest(name=name), pb.SystemSharedMemoryStatusRequest(name=name),
                pb.CudaSharedMemoryRegisterRequest(name=name, raw_handle=b"a", byte_size=8), pb.ServerLiveRequest(),
            ))  # fmt: skip
            method = type(good).__name__.removesuffix("Request")
        kind = type(good)
        if method.startswith("RepositoryModel") and rng.random() < 0.7:
            return method, kind, good.SerializeToString()
        if rng.random() < 0.02:
            method = rng.choice(("Nothing", "", "ModelInfer/..", "modelinfer"))
        return method, kind, mutate_message(rng, good)

    def _call(self, method: str, data: bytes) -> Any:
        if method != "ModelStreamInfer":
            return super()._call(method, data)
        good = self.request().SerializeToString()
        return self.channel.stream_stream(f"/{self.service}/{method}")(iter([good, data, good]), timeout=300)

    def judge(self, method: str, data: bytes, reply: bytes) -> None:
        if method == "ModelInfer":
            inference_pb2.ModelInferResponse.FromString(reply)
        elif method == "ModelStreamInfer":
            inference_pb2.ModelStreamInferResponse.FromString(reply)

    @staticmethod
    def request() -> inference_pb2.ModelInferRequest:
        request = inference_pb2.ModelInferRequest(model_name="calc", id="a", model_version="1")
        for name, values in (("a", (1.5, 2.5, -3.0, 0.0)), ("b", (1.0, 1.0, 1.0, 1.0))):
            request.inputs.add(name=name, datatype="FP32", shape=[1, 4])
            request.raw_input_contents.append(struct.pack("<4f", *values))
        request.outputs.add(name="sum")
        request.parameters["timeout"].int64_param = 0
        return request

    @staticmethod
    def text() -> inference_pb2.ModelInferRequest:
        request = inference_pb2.ModelInferRequest(model_name=NAME)
        for name, value in (("text_input", b"The mill"), ("sampling_parameters", b'{"max_tokens": 2}')):
            request.inputs.add(name=name, datatype="BYTES", shape=[1])
            request.raw_input_contents.append(struct.pack("<I", len(value)) + value)
        return request

    async def good(self) -> None:
        reply = await self._call("ModelInfer", self.request().SerializeToString())
        response = inference_pb2.ModelInferResponse.FromString(reply)
        assert response.raw_output_contents[0] == struct.pack("<4f", 2.5, 3.5, -2.0, 1.0)


class MindSporeGrpc(GrpcFuzzer):
    """Predict and its stream."""

    name = "MindSpore gRPC"
    service = "mindspore.serving.proto.MSService"
    malformed = Code.INTERNAL
    codes = frozenset((Code.UNIMPLEMENTED,))

    def make(self, rng: random.Random) -> tuple[str, type[Message], bytes]:
        good = self.request()
        pick = rng.random()
        if pick < 0.2:
            good.servable_spec.name = rng.choice(NAMES)
        elif pick < 0.3:
            good.servable_spec.method_name = rng.choice(NAMES)
        elif pick < 0.5:
            good = ms_service_pb2.PredictRequest(
                servable_spec=ms_service_pb2.ServableSpec(name="calc", method_name="join")
            )
            for name in ("left", "right"):
                good.instances.add().items[name].CopyFrom(
                    ms_service_pb2.Tensor(dtype=ms_service_pb2.MS_STRING, bytes_val=[b"a"])
                )
        method = rng.choice(("Predict", "Predict", "Predict", "PredictStream"))
        return method, ms_service_pb2.PredictRequest, mutate_message(rng, good)

    def _call(self, method: str, data: bytes) -> Any:
        if method != "PredictStream":
            return super()._call(method, data)
        return self.channel.unary_stream(f"/{self.service}/{method}")(data, timeout=300)

    def judge(self, method: str, data: bytes, reply: bytes) -> None:
        errors = ms_service_pb2.PredictReply.FromString(reply).error_msg
        assert all(error.error_code in (0, 1, 2, 5) for error in errors), errors

    @staticmethod
    def request() -> ms_service_pb2.PredictRequest:
        pb = ms_service_pb2
        request = pb.PredictRequest(servable_spec=pb.ServableSpec(name="calc", method_name="add", version_number=1))
        for _ in range(2):
            instance = request.instances.add()
            for name, values in (("a", (1.5, 2.5, -3.0, 0.0)), ("b", (1.0, 1.0, 1.0, 1.0))):
                data = struct.pack("<4f", *values)
                instance.items[name].CopyFrom(
                    pb.Tensor(dtype=pb.MS_FLOAT32, shape=pb.TensorShape(dims=[4]), data=data)
                )
        return request

    async def good(self) -> None:
        reply = await self._call("Predict", self.request().SerializeToString())
        response = ms_service_pb2.PredictReply.FromString(reply)
        expected = struct.pack("<4f", 2.5, 3.5, -2.0, 1.0)
        assert [instance.items["sum"].data for instance in response.instances] == [expected] * 2, response


class TgiShard(GrpcFuzzer):
    """The calls of a router. There is one router a shard: ClearCache of another takes its batches away."""

    name = "TGI shard"
    harms = frozenset(("TGI shard",))
    service = "generate.v3.TextGenerationService"
    malformed = Code.INVALID_ARGUMENT
    codes = frozenset((Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.RESOURCE_EXHAUSTED, Code.UNIMPLEMENTED))

    def make(self, rng: random.Random) -> tuple[str, type[Message], bytes]:
        pb = generate_pb2
        identity = rng.randrange(6)
        batch = pb.Batch(id=identity, requests=[make_request(1, "x", 2), make_request(2, "The mill", 2)], size=2)
        good = rng.choice((
            pb.PrefillRequest(batch=batch), pb.PrefillRequest(batch=batch), pb.PrefillRequest(batch=batch),
            pb.DecodeRequest(batches=[pb.CachedBatch(id=identity), pb.CachedBatch(id=rng.randrange(6))]),
            pb.DecodeRequest(batches=[pb.CachedBatch(id=identity)]),
            pb.FilterBatchRequest(batch_id=identity, request_ids=[rng.randrange(3)]),
            pb.ClearCacheRequest(id=identity), pb.WarmupRequest(batch=batch, max_input_tokens=8), pb.InfoRequest(),
            pb.HealthRequest(), pb.ServiceDiscoveryRequest(),
        ))  # fmt: skip
        method = type(good).__name__.removesuffix("Request")
        return method, type(good), mutate_message(rng, good) if rng.random() < 0.8 else good.SerializeToString()

    async def good(self) -> None:
        pb = generate_pb2
        batch = pb.Batch(id=2**40, requests=[make_request(1, "The mill", 1)], size=1, max_tokens=1000)
        reply = pb.PrefillResponse.FromString(
            await self._call("Prefill", pb.PrefillRequest(batch=batch).SerializeToString())
        )
        assert reply.generations[0].HasField("generated_text")

    async def close(self) -> None:
        await self._call("ClearCache", b"")
        await super().close()
