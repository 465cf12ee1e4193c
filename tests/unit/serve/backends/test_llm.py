"""The `llm` back end on a tiny Llama: text in, text out, equal to what transformers generates."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from millpond.config.load import make_config
from millpond.serve.backends.engine_model import EngineInstance
from millpond.serve.backends.llm import LlmBackend
from millpond.serve.backends.llm_sampling import word_ids
from millpond.serve.servables.backend import ModelFolder
from millpond.serve.servables.config import InstanceGroup, ServableConfig
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.messages import InferRequest, InferResponse
from tests.support.engine_servables import Collected, execute_one, request, tensor
from tests.support.tiny_checkpoints import make_llama_dir
from tests.support.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

GROUP = InstanceGroup("m_0")
PROMPT = "The mill by the"
GREEDY = {"temperature": "0", "max_tokens": "12", "ignore_eos": "true"}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `m` whose version 1 names a model that lies beside the version."""
    path = tmp_path_factory.mktemp("repository") / "m"
    (path / "1").mkdir(parents=True)
    make_llama_dir(path / "tiny")
    arguments = {"model": "tiny", "dtype": "float32", "max_num_seqs": "8", "gpu_memory_utilization": 0.5}
    (path / "1" / "model.json").write_text(json.dumps(arguments | {"cache.bytes": "8MiB", "enforce_eager": "true"}))
    return path


@pytest.fixture(scope="module")
def model(repository: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(repository / "tiny", dtype=torch.float32).eval()


def backend() -> LlmBackend:
    return LlmBackend(make_config({"runtime.threads": 1}))


async def load(
    backend: LlmBackend, folder: ModelFolder, config: ServableConfig | None = None
) -> tuple[ServableConfig, EngineInstance]:
    config = await backend.complete(config or ServableConfig("m", "vllm", (), ()), folder)
    return config, await backend.load(config, folder, GROUP, 0)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def instance(repository: Path) -> AsyncIterator[EngineInstance]:
    _, instance = await load(backend(), ModelFolder(repository, 1))
    yield instance
    await instance.close()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def trtllm(instance: EngineInstance, repository: Path) -> EngineInstance:
    """The other form, over the same engine."""
    sharing = backend()
    sharing.share("m", instance.engine)
    config = ServableConfig("m", "llm", (), (), max_batch_size=4, parameters={"form": "tensorrt_llm"})
    _, shared = await load(sharing, ModelFolder(None, 1), config)
    return shared


def ask(text: str = PROMPT, sampling: dict[str, object] | None = None, **inputs: object) -> InferRequest:
    wanted = json.dumps(GREEDY | (sampling or {}))
    return request(text_input=[text], sampling_parameters=[wanted], **inputs)


def texts(response: InferResponse, name: str = "text_output") -> list[str]:
    assert response.error is None, response.error
    return [value.decode("utf-8") for value in response.outputs[name].array.reshape(-1)]


def generated(
    instance: EngineInstance, model: PreTrainedModel, text: str, count: int = 12, **options: object
) -> list[int]:
    """The tokens of transformers' greedy generation, which nothing ends early."""
    tokens = instance.engine.text.tokenizer.encode(text)
    ids = torch.tensor([tokens])
    options |= {"max_new_tokens": count, "do_sample": False, "pad_token_id": 0}
    model.generation_config.eos_token_id = None
    output = model.generate(ids, attention_mask=torch.ones_like(ids), **options)  # type: ignore[operator]
    return output[0, len(tokens) :].tolist()


async def test_the_answer_is_the_prompt_and_what_transformers_says(
    instance: EngineInstance, model: PreTrainedModel
) -> None:
    said = instance.engine.text.tokenizer.decode(generated(instance, model, PROMPT))

    (response,) = await execute_one(instance, ask())
    (excluded,) = await execute_one(instance, ask(exclude_input_in_output=[True]))

    assert texts(response) == [PROMPT + said]
    assert texts(excluded) == [said]
    assert list(response.outputs) == ["text_output"]


async def test_a_stream_gives_the_answer_in_pieces_without_the_prompt(instance: EngineInstance) -> None:
    sampling: dict[str, object] = {"max_tokens": 300}  # long enough that not all of it can come at once
    (whole,) = await execute_one(instance, ask(sampling=sampling, exclude_input_in_output=[True]))

    pieces = await execute_one(
        instance,
        ask(sampling=sampling, stream=[True], return_finish_reason=[True], return_num_output_tokens=[True]),
    )

    assert len(pieces) > 1
    assert "".join(texts(piece)[0] for piece in pieces) == texts(whole)[0]
    assert [texts(piece, "finish_reason") for piece in pieces] == [["None"]] * (len(pieces) - 1) + [["length"]]
    assert sum(int(piece.outputs["num_output_tokens"].array[0]) for piece in pieces) == 300


async def test_optional_outputs_are_answered_when_asked_for(instance: EngineInstance, model: PreTrainedModel) -> None:
    names = ("finish_reason", "cumulative_logprob", "logprobs", "num_input_tokens", "num_output_tokens")

    (response,) = await execute_one(instance, ask(sampling={"logprobs": "2"}, **{f"return_{n}": [True] for n in names}))

    prompt, said = instance.engine.text.tokenizer.encode(PROMPT), generated(instance, model, PROMPT)
    with torch.inference_mode():
        table = model(torch.tensor([prompt + said])).logits[0].log_softmax(-1)
    expected = [float(table[len(prompt) - 1 + i, token]) for i, token in enumerate(said)]
    positions = json.loads(texts(response, "logprobs")[0])
    assert [position[str(token)]["logprob"] for position, token in zip(positions, said, strict=True)] == pytest.approx(
        expected, abs=1e-3
    )
    assert all(
        len(position) == 2 and position[str(t)]["rank"] == 1 for position, t in zip(positions, said, strict=True)
    )
    assert float(response.outputs["cumulative_logprob"].array[0]) == pytest.approx(sum(expected), abs=1e-2)
    assert response.outputs["num_input_tokens"].array.tolist() == [len(prompt)]
    assert response.outputs["num_output_tokens"].array.tolist() == [12]
    assert texts(response, "finish_reason") == ["length"]


async def test_choices_are_elements_of_the_outputs(instance: EngineInstance) -> None:
    sampling = {"n": "3", "temperature": "5", "seed": 7}
    asked = ask(sampling=sampling, exclude_input_in_output=[True], return_finish_reason=[True])

    (response,) = await execute_one(instance, asked)
    pieces = await execute_one(instance, ask(sampling=sampling, stream=[True]))

    assert len(set(texts(response))) == 3
    assert texts(response, "finish_reason") == ["length"] * 3
    streamed = [texts(piece) for piece in pieces]
    assert ["".join(each) for each in zip(*streamed, strict=True)] == texts(response)


async def test_beam_search_gives_the_beams(instance: EngineInstance) -> None:
    sampling = {"use_beam_search": True, "n": 2, "max_tokens": 5}

    (response,) = await execute_one(instance, ask(sampling=sampling, exclude_input_in_output=[True]))

    assert len(set(texts(response))) == 2


async def test_parameters_of_the_request_count_without_sampling_parameters(instance: EngineInstance) -> None:
    parameters = {**GREEDY, "id": "7", "exclude_input_in_output": True, "triton_enable_empty_final_response": True}
    (expected,) = await execute_one(instance, ask(exclude_input_in_output=[True]))

    (response,) = await execute_one(instance, request(text_input=[PROMPT], parameters=parameters))

    assert texts(response) == texts(expected)


async def test_bad_words_are_ruled_out_as_in_transformers(instance: EngineInstance, model: PreTrainedModel) -> None:
    tokenizer = instance.engine.text.tokenizer
    word = tokenizer.decode(generated(instance, model, PROMPT)[:1])
    ids = [list(each) for each in word_ids([word], tokenizer)]

    (response,) = await execute_one(instance, ask(sampling={"bad_words": [word]}, exclude_input_in_output=[True]))

    assert texts(response) == [tokenizer.decode(generated(instance, model, PROMPT, bad_words_ids=ids))]
    assert not texts(response)[0].startswith(word)


async def test_a_stop_word_ends_the_answer(instance: EngineInstance) -> None:
    (whole,) = await execute_one(instance, ask(exclude_input_in_output=[True]))
    stop = texts(whole)[0][2:4]

    (stopped,) = await execute_one(instance, ask(sampling={"stop": stop}, exclude_input_in_output=[True]))

    assert texts(stopped) == [texts(whole)[0].split(stop)[0]]


async def test_a_grammar_is_followed_and_a_broken_one_refused(instance: EngineInstance) -> None:
    grammar = json.dumps({"regex": "(yes|no)!"})
    sampling = {"structured_outputs": grammar, "ignore_eos": False, "max_tokens": 40}

    (response,) = await execute_one(instance, ask(sampling=sampling, exclude_input_in_output=[True]))
    (broken,) = await execute_one(instance, ask(sampling={"guided_decoding": {"regex": "(("}}))

    assert texts(response)[0] in ("yes!", "no!")
    assert broken.error is not None
    assert broken.error.code == "invalid_argument"


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (request(text_input=[PROMPT], sampling_parameters=["{"]), "not JSON"),
        (ask(sampling={"temprature": 1}), "did you mean 'temperature'"),
        (ask(sampling={"temperature": "warm"}), "temperature is 'warm'"),
        (ask(sampling={"temperature": -1}), "temperature"),
        (ask(sampling={"max_tokens": 100_000}), "context"),
        (ask(sampling={"lora_name": "x"}), "lora_name"),
        (ask(sampling={"best_of": 3}), "best_of"),
        (ask(sampling={"n": 2.5}), "whole number"),
        (ask(stream=[True], exclude_input_in_output=[False]), "streaming"),
        (ask(image=["x"]), "Images"),
        (request(text_input=tensor("text_input", np.array([b"\xff"], dtype=object))), "UTF-8"),
    ],
)
async def test_a_wrong_request_says_what_is_wrong(instance: EngineInstance, asked: InferRequest, words: str) -> None:
    (response,) = await execute_one(instance, asked)

    assert response.error is not None
    assert response.error.code == "invalid_argument"
    assert words.lower() in response.error.message.lower()


async def test_a_cancelled_stream_frees_the_engine(instance: EngineInstance) -> None:
    asked = ask(sampling={"max_tokens": 450, "n": 8, "temperature": 1}, stream=[True])
    collected = Collected(1)
    running = asyncio.create_task(instance.execute([asked], collected))
    await eventually(lambda: collected.responses[0])

    await instance.cancel(asked)
    await running

    await eventually(lambda: instance.engine.stats.num_running == 0)
    assert collected.responses[0][-1].error is not None


async def test_rows_of_the_other_form_have_their_own_parameters(
    instance: EngineInstance, trtllm: EngineInstance, model: PreTrainedModel
) -> None:
    decode = instance.engine.text.tokenizer.decode
    rows = [PROMPT, "A small language"]

    (response,) = await execute_one(
        trtllm,
        request(
            text_input=[[row] for row in rows],
            max_tokens=tensor("max_tokens", np.array([[12], [5]], np.int32)),
            end_id=tensor("end_id", np.array([[383], [383]], np.int32)),
            return_log_probs=[[True], [True]],
            stop_words=[[""], [""]],
        ),
    )

    expected = [row + decode(generated(instance, model, row, count)) for row, count in zip(rows, (12, 5), strict=True)]
    assert texts(response) == expected
    assert response.outputs["text_output"].array.shape == (2, 1)
    assert response.outputs["output_log_probs"].array.shape == (2, 1, 12)
    single, cumulative = (response.outputs[name].array for name in ("output_log_probs", "cum_log_probs"))
    assert cumulative.ravel().tolist() == pytest.approx(single.sum(-1).ravel().tolist(), abs=1e-3)
    assert not single[1, 0, 5:].any()


async def test_the_other_form_streams_and_searches_with_beams(trtllm: EngineInstance) -> None:
    counted = {"text_input": [[PROMPT]], "max_tokens": tensor("max_tokens", np.array([[6]], np.int32))}

    (whole,) = await execute_one(trtllm, request(**counted, exclude_input_in_output=[[True]]))
    pieces = await execute_one(trtllm, request(**counted, stream=[[True]]))
    (beams,) = await execute_one(trtllm, request(**counted, beam_width=tensor("beam_width", np.array([[3]], np.int32))))

    assert "".join(texts(piece)[0] for piece in pieces) == texts(whole)[0]
    assert beams.outputs["text_output"].array.shape == (1, 3)
    assert all(text.startswith(PROMPT) for text in texts(beams))


async def test_a_shared_engine_outlives_its_servable(instance: EngineInstance) -> None:
    sharing = backend()
    config = sharing.share("other", instance.engine)
    completed, shared = await load(sharing, ModelFolder(None, 1), config)

    await shared.close()

    assert completed.decoupled
    assert instance.engine.state == "ready"
    (response,) = await execute_one(instance, ask())
    assert response.error is None


async def test_a_short_configuration_is_completed(repository: Path) -> None:
    folder = ModelFolder(repository, 1)

    config = await backend().complete(ServableConfig("m", "vllm", (), ()), folder)
    fixed = await backend().complete(ServableConfig("m", "vllm", (), (), parameters={"decoupled": "false"}), folder)

    assert [spec.name for spec in config.inputs][:4] == ["text_input", "image", "stream", "sampling_parameters"]
    assert {spec.name for spec in config.inputs if not spec.optional} == {"text_input"}
    assert (config.decoupled, fixed.decoupled) == (True, False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (b"{", "not JSON"),
        (b"[]", "JSON object"),
        (b"{}", "name the model"),
        (b'{"model": "tiny", "gpu_memory_utilisation": 1}', "did you mean 'gpu_memory_utilization'"),
        (b'{"model": "tiny", "tensor_parallel_size": 2}', "tensor_parallel_size 2, which is not served"),
        (b'{"model": "tiny", "quantization": "awq"}', "quantization"),
        (b'{"model": "tiny", "max_num_seqs": "many"}', "max_sequences"),
        (b'{"model": "nowhere"}', "cannot be loaded"),
    ],
)
async def test_wrong_engine_arguments_say_what_is_wrong(repository: Path, arguments: bytes, words: str) -> None:
    folder = ModelFolder(repository, 1, {"1/model.json": arguments})

    with pytest.raises(ServableError) as caught:
        await load(backend(), folder)

    assert words.lower() in caught.value.message.lower()
    assert str(repository) not in caught.value.message


async def test_several_instances_are_refused(repository: Path) -> None:
    config = ServableConfig("m", "vllm", (), (), instance_groups=(InstanceGroup("m_0", count=2),))

    with pytest.raises(ServableError, match="several instances"):
        await backend().complete(config, ModelFolder(repository, 1))
