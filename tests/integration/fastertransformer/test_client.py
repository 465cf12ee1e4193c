"""Triton's own client against a `fastertransformer` folder: gRPC, HTTP, streamed, and the generate extension."""

from __future__ import annotations

import json
import queue
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from transformers import AutoTokenizer, PreTrainedModel
from tritonclient.utils import InferenceServerException

from millpond.config.load import make_config
from millpond.serve.backends.fastertransformer import FasterTransformerBackend
from tests.support.tiny_directory import EOS, write_model
from tests.support.tiny_models import make_model
from tests.support.triton_server import TritonServer

CONFIG = """backend: "fastertransformer" model_transaction_policy { decoupled: %s }
parameters { key: "model_type" value { string_value: "GPT" } }
parameters { key: "data_type" value { string_value: "fp32" } }
parameters { key: "model_checkpoint_path" value { string_value: "%s" } }
parameters { key: "millpond.cache.bytes" value { string_value: "8MiB" } }
"""


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return make_model("bloom", seed=2)


@pytest.fixture(scope="module")
def checkpoint(model: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bloom")
    write_model(path, model)
    return path


@pytest.fixture(scope="module")
def server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """Models `fastertransformer` and `streaming`."""
    models = tmp_path_factory.mktemp("models")
    for name, decoupled in (("fastertransformer", "false"), ("streaming", "true")):
        (models / name / "1").mkdir(parents=True)
        (models / name / "config.pbtxt").write_text(CONFIG % (decoupled, checkpoint))
    backend = FasterTransformerBackend(make_config({"runtime.threads": 1, "scheduler.max_sequences": 8}))
    names = ["fastertransformer", "streaming"]
    server = TritonServer(models, names, backends={"fastertransformer": backend})
    yield server
    server.close()


def inputs_for(client: object, token_ids: list[int], output_len: int) -> list[object]:
    arrays = {
        "input_ids": np.array([token_ids], np.uint32),
        "input_lengths": np.array([[len(token_ids)]], np.uint32),
        "request_output_len": np.array([[output_len]], np.uint32),
    }
    inputs = []
    for name, array in arrays.items():
        inputs.append(client.InferInput(name, array.shape, "UINT32"))  # type: ignore[attr-defined]
        inputs[-1].set_data_from_numpy(array)
    return inputs


def greedy(model: PreTrainedModel, tokens: list[int], count: int) -> list[int]:
    ids = torch.tensor([tokens])
    output = model.generate(  # type: ignore[operator]  # transformers types it as a tensor
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, pad_token_id=EOS
    )
    return output[0].tolist()


@pytest.mark.parametrize("client", [grpcclient, httpclient])
def test_a_text_goes_through_tokenizer_server_and_tokenizer(
    server: TritonServer, client: object, checkpoint: Path, model: PreTrainedModel
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokens = tokenizer("deepspeed is")["input_ids"]
    url = server.grpc if client is grpcclient else server.http

    with client.InferenceServerClient(url) as connection:  # type: ignore[attr-defined]  # the module has no types
        wanted = [client.InferRequestedOutput("output_ids")]  # type: ignore[attr-defined]  # the module has no types
        result = connection.infer("fastertransformer", inputs_for(client, tokens, 32), outputs=wanted)

    output_ids = result.as_numpy("output_ids")
    expected = greedy(model, tokens, 32)
    assert output_ids.shape == (1, 1, len(tokens) + 32)
    assert output_ids[0, 0, : len(expected)].tolist() == expected
    assert tokenizer.batch_decode(output_ids[0])[0].startswith("deepspeed is")


def test_a_stream_has_a_response_a_token(server: TritonServer, model: PreTrainedModel) -> None:
    tokens, answers = [9, 10, 11], queue.Queue[object]()
    with grpcclient.InferenceServerClient(server.grpc) as connection:
        connection.start_stream(lambda result, error: answers.put(error or result))
        connection.async_stream_infer("streaming", inputs_for(grpcclient, tokens, 6))
        results = []
        while True:
            results.append(answers.get(timeout=60))
            response = results[-1].get_response()  # type: ignore[attr-defined]  # the module has no types
            if response.parameters["triton_final_response"].bool_param:
                break
        connection.stop_stream()

    expected = greedy(model, tokens, 6)
    lengths = [int(result.as_numpy("sequence_length")[0, 0]) for result in results]  # type: ignore[attr-defined]
    assert lengths == list(range(4, len(expected) + 1))
    last = results[-1].as_numpy("output_ids")[0, 0]  # type: ignore[attr-defined]
    assert last[: len(expected)].tolist() == expected


def test_the_generate_extension_answers_plain_json(server: TritonServer, model: PreTrainedModel) -> None:
    body = {"input_ids": [9, 10, 11], "input_lengths": 3, "request_output_len": 4}
    url = f"http://{server.http}/v2/models/fastertransformer/generate"
    asked = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})

    with urllib.request.urlopen(asked, timeout=60) as answer:
        document = json.loads(answer.read())

    expected = greedy(model, [9, 10, 11], 4)
    assert document["output_ids"] == expected + [EOS] * (7 - len(expected))
    assert document["sequence_length"] == len(expected)


def test_a_request_that_cannot_be_served_is_the_clients_error(server: TritonServer) -> None:
    with (
        grpcclient.InferenceServerClient(server.grpc) as connection,
        pytest.raises(InferenceServerException, match="context holds") as caught,
    ):
        connection.infer("fastertransformer", inputs_for(grpcclient, [9, 10], 10_000))

    assert "INVALID_ARGUMENT" in str(caught.value.status())
