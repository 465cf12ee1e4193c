"""The requests over gRPC, and those that belong together, for the comparison with a real Triton.

`corpus` puts both halves together from a seed: a list of scenes, each a list of requests that keep their order.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.serving.triton_asks import Ask, GrpcAsk, HttpAsk
from bench.serving.triton_corpus import MODELS, REGION, infer, post, raw
from bench.serving.triton_corpus_server import HTTP
from bench.serving.triton_documents import ODD, as_message, identity_document, simple_document, values
from bench.serving.triton_models import TYPES
from millpond.serve.proto import inference_pb2 as pb

Edit = Callable[[pb.ModelInferRequest, random.Random], object]


def call(kind: str, rpc: str, *messages: Any) -> GrpcAsk:
    """Returns a call."""
    return GrpcAsk(kind, rpc, tuple(_bytes(message) for message in messages))


def _bytes(message: Any) -> bytes:
    """The same bytes in every process: maps have no order of their own."""
    return message if isinstance(message, bytes) else bytes(message.SerializeToString(deterministic=True))


def typed(rng: random.Random) -> GrpcAsk:
    datatype = rng.choice([name for name in TYPES if name != "FP16"])
    message = as_message(identity_document(datatype, rng), f"id_{datatype.lower()}")
    return call(f"grpc {datatype}", "ModelInfer", message)


def raw_contents(rng: random.Random) -> GrpcAsk:
    datatype = rng.choice(list(TYPES))
    rows, columns = rng.randint(1, 8), rng.choice([0, 1, 4])
    message = pb.ModelInferRequest(model_name=f"id_{datatype.lower()}", id=rng.choice(["", "q"]))
    message.inputs.add(name="IN", datatype=datatype, shape=[rows, columns])
    message.raw_input_contents.append(raw(datatype, values(datatype, rows * columns, rng)))
    return call(f"grpc raw {datatype}", "ModelInfer", message)


def _classify(message: pb.ModelInferRequest, rng: random.Random) -> None:
    output = message.outputs.add(name="OUTPUT0")
    output.parameters["classification"].int64_param = rng.choice([-1, 0, 1, 3, 99])


def _parameter(message: pb.ModelInferRequest, rng: random.Random) -> None:
    name = rng.choice(["priority", "timeout", "sequence_id", "sequence_start", "mine", "triton_mine", "headers"])
    target = rng.choice([message.parameters, message.parameters, message.inputs[0].parameters])[name]
    kind = rng.choice(["int64_param", "string_param", "bool_param", "double_param", "uint64_param"])
    setattr(target, kind, {"string_param": "x", "bool_param": True, "double_param": 1.5}.get(kind, 3))


def _place(message: pb.ModelInferRequest, rng: random.Random) -> None:
    given = message.inputs[0].parameters
    given["shared_memory_region"].string_param = rng.choice(["main", "gone"])
    if rng.random() < 0.7:
        given["shared_memory_byte_size"].int64_param = rng.choice([64, 63, 1 << 40])
    if rng.random() < 0.5:
        message.inputs[0].ClearField("contents")


EDITS: tuple[Edit, ...] = (
    lambda m, r: m.inputs.pop(r.randrange(2)),
    lambda m, r: m.inputs.append(m.inputs[r.randrange(2)]),
    lambda m, r: setattr(m.inputs[r.randrange(2)], "name", r.choice(["INPUT9", "", "ü"])),
    lambda m, r: setattr(
        m.inputs[r.randrange(2)], "datatype", r.choice(["FP32", "INT33", "", "BYTES", "INT64", "FP16"])
    ),
    lambda m, r: m.inputs[r.randrange(2)].ClearField("shape"),
    lambda m, r: m.inputs[r.randrange(2)].shape.__setitem__(r.randrange(2), r.choice([0, -1, 2, 9, 1 << 40])),
    lambda m, r: m.inputs[r.randrange(2)].shape.append(1),
    lambda m, r: m.inputs[r.randrange(2)].contents.int_contents.append(5),
    lambda m, r: m.inputs[r.randrange(2)].contents.int_contents.pop(),
    lambda m, r: m.inputs[r.randrange(2)].ClearField("contents"),
    lambda m, r: m.inputs[r.randrange(2)].contents.fp32_contents.append(1.0),
    lambda m, r: m.raw_input_contents.extend([bytes(64)] * r.choice([1, 2, 3])),
    lambda m, r: m.outputs.add(name=r.choice(["OUTPUT9", "", "OUTPUT0"])),
    lambda m, r: setattr(m, "model_version", r.choice(["1", "2", "x", "-1", "0", " 1", "99999999999999999999"])),
    lambda m, r: setattr(m, "model_name", r.choice([*MODELS, ""])),
    lambda m, r: m.ClearField("inputs"),
    _classify,
    _parameter,
    _parameter,
    _place,
)


def fault(rng: random.Random) -> GrpcAsk:
    message = as_message(simple_document(rng), "simple")
    index = rng.randrange(len(EDITS))
    EDITS[index](message, rng)
    return call(f"grpc fault {index}", "ModelInfer", message)


def raw_fault(rng: random.Random) -> GrpcAsk:
    message = pb.ModelInferRequest(model_name="simple")
    for index in range(2):
        message.inputs.add(name=f"INPUT{index}", datatype="INT32", shape=[1, 16])
        message.raw_input_contents.append(bytes(rng.choice([64, 64, 0, 63, 65, 128])))
    if rng.random() < 0.3:
        message.inputs[0].contents.int_contents.extend([1] * 16)
    if rng.random() < 0.2:
        message.raw_input_contents.pop()
    return call("grpc raw fault", "ModelInfer", message)


def no_message(rng: random.Random) -> GrpcAsk:
    rpc = rng.choice(["ModelInfer", "ModelConfig", "RepositoryIndex", "LogSettings"])
    return call("grpc no message", rpc, rng.choice([b"\xff", b"\x0a\xff", b"\x08\x01", b"\x0a\x03abc", b""]))


def questions(rng: random.Random) -> GrpcAsk:
    name = rng.choice([*MODELS, "every_version", ""])
    version = rng.choice(["", "", "1", "2", "9", "x", "-1"])
    kind, rpc = rng.choice(
        [
            (pb.ModelReadyRequest(name=name, version=version), "ModelReady"),
            (pb.ModelMetadataRequest(name=name, version=version), "ModelMetadata"),
            (pb.ModelConfigRequest(name=name, version=version), "ModelConfig"),
            (
                pb.ModelStatisticsRequest(name=rng.choice(["counted", "nothing", ""]), version=version),
                "ModelStatistics",
            ),
            (pb.ServerMetadataRequest(), "ServerMetadata"),
            (pb.ServerReadyRequest(), "ServerReady"),
            (pb.RepositoryIndexRequest(ready=rng.random() < 0.5), "RepositoryIndex"),
            (pb.RepositoryIndexRequest(repository_name="x"), "RepositoryIndex"),
        ]
    )
    return call(f"grpc {rpc}", rpc, kind)


def settings(rng: random.Random) -> GrpcAsk:
    if rng.random() < 0.5:
        log = pb.LogSettingsRequest()
        setting = log.settings[rng.choice(["log_info", "log_verbose_level", "log_format", "log_file", "other"])]
        kind = rng.choice(["bool_param", "uint32_param", "string_param"])
        setattr(
            setting, kind, {"bool_param": True, "uint32_param": 1}.get(kind, rng.choice(["x", "ISO8601", "default"]))
        )
        return call("grpc logging", "LogSettings", rng.choice([log, pb.LogSettingsRequest()]))
    trace = pb.TraceSettingRequest(model_name=rng.choice(["", "simple", "nothing"]))
    name = rng.choice(["trace_rate", "trace_count", "log_frequency", "trace_file", "other", "trace_level"])
    trace.settings[name].value.extend(rng.choice([[], ["5"], ["-7"], ["x"], ["1", "2"], ["OFF"]]))
    return call("grpc trace", "TraceSetting", trace)


def loading(rng: random.Random) -> GrpcAsk:
    model = rng.choice(["automatic", "nothing", "broken", "reshaped", ""])
    if rng.random() < 0.3:
        return call("grpc unload", "RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name=model))
    load = pb.RepositoryModelLoadRequest(model_name=model, repository_name=rng.choice(["", "", "", "x"]))
    if rng.random() < 0.5:
        name = rng.choice(["config", "other", "file:1/model.py"])
        load.parameters[name].string_param = rng.choice(["{", '{"max_batch_size": 2}', "x"])
    return call("grpc load", "RepositoryModelLoad", load)


def regions(rng: random.Random) -> GrpcAsk:
    name = rng.choice(["", "c", "d"])
    size = rng.choice([0, 128, 512, 1 << 40])
    which: list[tuple[Any, str]] = [
        (pb.SystemSharedMemoryStatusRequest(name=name), "SystemSharedMemoryStatus"),
        (pb.SystemSharedMemoryUnregisterRequest(name=name), "SystemSharedMemoryUnregister"),
        (
            pb.SystemSharedMemoryRegisterRequest(
                name=name, key=rng.choice([f"/{REGION}", "/none", ""]), byte_size=size
            ),
            "SystemSharedMemoryRegister",
        ),
        (pb.CudaSharedMemoryStatusRequest(name=name), "CudaSharedMemoryStatus"),
    ]
    message, rpc = rng.choice(which)
    return call(f"grpc {rpc}", rpc, message)


def stream(rng: random.Random) -> GrpcAsk:
    """Several requests on a stream, with decoupled models among them."""
    messages = []
    for _ in range(rng.randint(1, 3)):
        which = rng.randrange(5)
        if which == 0:
            message = as_message(simple_document(rng), rng.choice(["simple", "nothing"]))
            if rng.random() < 0.3:
                message.inputs.pop()
        elif which == 1:
            message = pb.ModelInferRequest(model_name="err", id="e")
            message.inputs.add(name="CODE", datatype="INT32", shape=[1]).contents.int_contents.append(rng.randrange(8))
        else:
            message = decoupled(rng)
        if rng.random() < 0.4:
            message.parameters["triton_enable_empty_final_response"].bool_param = rng.random() < 0.8
        messages.append(message)
    return call("grpc stream", "ModelStreamInfer", *messages)


def decoupled(rng: random.Random) -> pb.ModelInferRequest:
    """Returns a request to the model that repeats, or to the one that writes text."""
    if rng.random() < 0.5:
        message = pb.ModelInferRequest(model_name="llm", id=rng.choice(["", "l"]))
        text = message.inputs.add(name="text_input", datatype="BYTES", shape=[1])
        text.contents.bytes_contents.append(rng.choice([b"hi", b"boom"]))
        return message
    count = rng.choice([0, 1, 3])
    message = pb.ModelInferRequest(model_name="repeat_int32", id="r")
    message.inputs.add(name="IN", datatype="INT32", shape=[count]).contents.int_contents.extend(range(count))
    message.inputs.add(name="DELAY", datatype="UINT32", shape=[count]).contents.uint_contents.extend([0] * count)
    message.inputs.add(name="WAIT", datatype="UINT32", shape=[1]).contents.uint_contents.append(0)
    return message


def unary_decoupled(rng: random.Random) -> GrpcAsk:
    return call("grpc decoupled unary", "ModelInfer", decoupled(rng))


GRPC: tuple[tuple[Callable[[random.Random], GrpcAsk], int], ...] = (
    (typed, 8),
    (raw_contents, 8),
    (fault, 22),
    (raw_fault, 4),
    (no_message, 2),
    (questions, 9),
    (settings, 5),
    (loading, 3),
    (regions, 4),
    (stream, 8),
    (unary_decoupled, 1),
)


def sequence(rng: random.Random) -> list[Ask]:
    """A sequence over HTTP or gRPC, with a fault now and then."""
    model = rng.choice(["simple_sequence", "simple_dyna_sequence", "simple_string_dyna_sequence"])
    number: Any = rng.choice([rng.randint(1, 10**6), str(rng.randint(1, 10**6))])
    asks: list[Ask] = []
    length = rng.randint(1, 4)
    is_grpc = rng.random() < 0.5
    for index in range(length):
        given: dict[str, Any] = {"sequence_id": number}
        given |= {"sequence_start": index == 0, "sequence_end": index == length - 1}
        if rng.random() < 0.15:
            given[rng.choice(list(given))] = rng.choice([0, "", True, False, *ODD[:4]])
        asks.append(_part(model, given, index, is_grpc=is_grpc))
    return asks


def _part(model: str, given: dict[str, Any], index: int, *, is_grpc: bool) -> Ask:
    if not is_grpc:
        entry = {"name": "INPUT", "shape": [1, 1], "datatype": "INT32", "data": [index + 1]}
        return infer(f"sequence {model}", model, {"inputs": [entry], "parameters": given})
    message = pb.ModelInferRequest(model_name=model)
    message.inputs.add(name="INPUT", datatype="INT32", shape=[1, 1]).contents.int_contents.append(index + 1)
    for name, value in given.items():
        kind = {bool: "bool_param", int: "int64_param", str: "string_param"}.get(type(value), "double_param")
        setattr(message.parameters[name], kind, value if value is not None else 0.0)
    return call(f"grpc sequence {model}", "ModelInfer", message)


def counted(rng: random.Random) -> list[Ask]:
    """A few requests to a model, then its counters."""
    asks: list[Ask] = []
    for _ in range(2):
        rows = rng.randint(1, 5)
        entry = {"name": "IN", "shape": [rows, 2], "datatype": "INT32", "data": np.arange(rows * 2).tolist()}
        asks.append(infer("counted", "counted", {"inputs": [entry]}))
    return [*asks, HttpAsk("statistics counted", "GET", "/v2/models/counted/stats")]


def reloaded(rng: random.Random) -> list[Ask]:
    """A model goes and comes back, with requests between."""
    model = rng.choice(["automatic", "newest_version"])
    entry = {"name": "IN", "shape": [1, 1] if model == "automatic" else [1], "datatype": "INT32", "data": [4]}
    ask = infer(f"reloaded {model}", model, {"inputs": [entry]})
    ready = HttpAsk("reloaded ready", "GET", f"/v2/models/{model}/ready")
    back = post("reloaded load", f"/v2/repository/models/{model}/load", {})
    return [
        back,
        ask,
        post("reloaded unload", f"/v2/repository/models/{model}/unload", {}),
        ask,
        ready,
        back,
        ready,
        ask,
    ]


def corpus(seed: int, count: int) -> list[list[Ask]]:
    """Returns `count` requests in scenes; the first registers the shared memory that others use."""
    rng = random.Random(seed)
    shared = {"key": f"/{REGION}", "byte_size": 256}
    scenes: list[list[Ask]] = [[post("memory main", "/v2/systemsharedmemory/region/main/register", shared)]]
    left = count - 1
    makers: list[Callable[[random.Random], Any]] = [maker for maker, _ in (*HTTP, *GRPC)]
    weights = [weight for _, weight in (*HTTP, *GRPC)]
    makers += [sequence, counted, reloaded]
    weights += [4, 1, 0.5]  # type: ignore[list-item]
    while left:
        made = rng.choices(makers, weights)[0](rng)
        scene = (made if isinstance(made, list) else [made])[:left]
        scenes.append(scene)
        left -= len(scene)
    return scenes
