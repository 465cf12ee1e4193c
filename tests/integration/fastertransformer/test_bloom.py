"""The `fastertransformer` back end on a tiny BLOOM: what a client's tensors give is what transformers generates."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
import torch
from transformers import PreTrainedModel

from millpond.config.load import make_config
from millpond.serve.backends.engine_model import EngineInstance
from millpond.serve.backends.fastertransformer import FasterTransformerBackend
from millpond.serve.servables.backend import ModelFolder
from millpond.serve.servables.config import InstanceGroup, ServableConfig
from millpond.serve.servables.messages import InferRequest, InferResponse
from tests.support.engine_servables import Collected, execute, execute_one, request
from tests.support.tiny_directory import EOS, write_model
from tests.support.tiny_models import VOCAB, make_model
from tests.support.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

GROUP = InstanceGroup("fastertransformer_0")
OTHER_END = 7


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    """Peaked, so that no rounding decides between beams of about equal score."""
    model = make_model("bloom")
    model.transformer.ln_f.weight.data *= 8
    return model


@pytest.fixture(scope="module")
def folder(model: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    path = tmp_path_factory.mktemp("repository") / "fastertransformer"
    (path / "1").mkdir(parents=True)
    write_model(path / "1" / "bloom", model)
    return ModelFolder(path, 1)


def config(*, decoupled: bool = False, **parameters: str) -> ServableConfig:
    known = {"model_type": "GPT", "model_checkpoint_path": "bloom", "data_type": "fp32", "tensor_para_size": "2"}
    return ServableConfig(
        "fastertransformer",
        "fastertransformer",
        (),
        (),
        decoupled=decoupled,
        parameters=known | {"millpond.cache.bytes": "8MiB"} | parameters,
    )


async def load(folder: ModelFolder, config: ServableConfig) -> EngineInstance:
    backend = FasterTransformerBackend(make_config({"runtime.threads": 1, "scheduler.max_sequences": 16}))
    return await backend.load(await backend.complete(config, folder), folder, GROUP, 0)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def instance(folder: ModelFolder) -> AsyncIterator[EngineInstance]:
    instance = await load(folder, config())
    yield instance
    await instance.close()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def streaming(folder: ModelFolder) -> AsyncIterator[EngineInstance]:
    """Decoupled, with an end_id in config.ini."""
    ini = f"[gpt]\nend_id = {OTHER_END}\nhead_num = 3\n".encode()
    instance = await load(ModelFolder(folder.path, 1, {"1/config.ini": ini}), config(decoupled=True))
    yield instance
    await instance.close()


def prompt(seed: int, length: int) -> list[int]:
    numbers = random.Random(seed)
    return [numbers.randrange(8, VOCAB) for _ in range(length)]


def ft_request(prompts: list[list[int]], output_len: int | list[int], **inputs: object) -> InferRequest:
    """As a client makes one: shorter prompts are padded on the right with the end id."""
    width = max(map(len, prompts))
    lens = [output_len] * len(prompts) if isinstance(output_len, int) else output_len
    return request(
        "fastertransformer",
        input_ids=np.array([[*each, *[EOS] * (width - len(each))] for each in prompts], np.uint32),
        input_lengths=np.array([[len(each)] for each in prompts], np.uint32),
        request_output_len=np.array([[each] for each in lens], np.uint32),
        **inputs,
    )


def column(value: float, rows: int, kind: type) -> np.ndarray:
    return np.full((rows, 1), value, kind)


def array(response: InferResponse, name: str) -> np.ndarray:
    assert response.error is None, response.error
    return response.outputs[name].array


def greedy(model: PreTrainedModel, tokens: list[int], count: int, **options: object) -> list[int]:
    """Prompt and output of transformers."""
    ids = torch.tensor([tokens])
    options = {"max_new_tokens": count, "do_sample": False, "pad_token_id": EOS} | options
    return model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0].tolist()  # type: ignore[operator]


async def test_greedy_rows_are_those_of_transformers_with_their_padding_squeezed_out(
    instance: EngineInstance, model: PreTrainedModel
) -> None:
    prompts = [prompt(1, 5), prompt(2, 12), prompt(3, 9)]

    (response,) = await execute_one(instance, ft_request(prompts, [8, 10, 3]))

    output_ids, lengths = array(response, "output_ids"), array(response, "sequence_length")
    assert output_ids.shape == (3, 1, 12 + 10)
    assert output_ids.dtype == np.uint32
    assert set(response.outputs) == {"output_ids", "sequence_length", "response_input_lengths"}
    assert array(response, "response_input_lengths").tolist() == [[5], [12], [9]]
    for row, (asked, count) in enumerate(zip(prompts, [8, 10, 3], strict=True)):
        expected = greedy(model, asked, count)
        assert lengths[row].tolist() == [len(expected)]
        assert output_ids[row, 0].tolist() == expected + [EOS] * (22 - len(expected))


@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("penalty", [0.0, 1.0])
async def test_beams_are_those_of_transformers(
    instance: EngineInstance, model: PreTrainedModel, width: int, penalty: float
) -> None:
    prompts = [prompt(4, 6), prompt(5, 10)]
    asked = ft_request(
        prompts,
        7,
        beam_width=column(width, 2, np.uint32),
        len_penalty=column(penalty, 2, np.float32),
        is_return_log_probs=column(True, 2, np.bool_),
    )

    (response,) = await execute_one(instance, asked)

    output_ids, lengths = array(response, "output_ids"), array(response, "sequence_length")
    assert output_ids.shape == (2, width, 17)
    for row, tokens in enumerate(prompts):
        ids = torch.tensor([tokens])
        expected = model.generate(  # type: ignore[operator]  # transformers types it as a tensor
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=7,
            num_beams=width,
            num_return_sequences=width,
            length_penalty=penalty,
            pad_token_id=EOS,
            return_dict_in_generate=True,
            output_scores=True,
            do_sample=False,
        )
        for beam in range(width):
            told = output_ids[row, beam, : lengths[row, beam]].tolist()
            best = expected.sequences[beam].tolist()
            assert told == best[: len(told)]
            generated = len(told) - len(tokens)
            score = float(array(response, "cum_log_probs")[row, beam]) / generated**penalty
            assert score == pytest.approx(float(expected.sequences_scores[beam]), abs=1e-3)


async def test_an_unknown_beam_width_falls_back_to_one(instance: EngineInstance, model: PreTrainedModel) -> None:
    (response,) = await execute_one(instance, ft_request([prompt(6, 5)], 4, beam_width=column(5, 1, np.uint32)))

    assert array(response, "output_ids")[:, 0].tolist() == [greedy(model, prompt(6, 5), 4)]


async def test_log_probabilities_are_those_of_the_model(instance: EngineInstance, model: PreTrainedModel) -> None:
    tokens = prompt(7, 6)

    (response,) = await execute_one(
        instance, ft_request([tokens, tokens], [5, 2], is_return_log_probs=column(True, 2, np.bool_))
    )

    whole = array(response, "output_ids")[0, 0].tolist()
    with torch.inference_mode():
        table = model(torch.tensor([whole])).logits[0].float().log_softmax(-1)
    expected = [float(table[place - 1, whole[place]]) for place in range(6, 11)]
    told = array(response, "output_log_probs")
    assert told.shape == (2, 1, 5)
    assert told[0, 0].tolist() == pytest.approx(expected, abs=1e-3)
    assert told[1, 0].tolist() == pytest.approx([*expected[:2], 0, 0, 0], abs=1e-3)
    assert array(response, "cum_log_probs").ravel().tolist() == pytest.approx(
        [sum(expected), sum(expected[:2])], abs=1e-3
    )


async def test_requests_of_one_batch_share_the_time_dimension(instance: EngineInstance, model: PreTrainedModel) -> None:
    alone, merged = prompt(8, 4), prompt(9, 11)

    first, second = await execute(instance, [ft_request([alone], 3), ft_request([merged], 6)])

    assert array(first[0], "output_ids").shape == array(second[0], "output_ids").shape == (1, 1, 17)
    assert array(first[0], "output_ids")[0, 0].tolist() == greedy(model, alone, 3) + [EOS] * 10
    assert array(second[0], "output_ids")[0, 0].tolist() == greedy(model, merged, 6)


async def test_a_wrong_request_fails_alone(instance: EngineInstance, model: PreTrainedModel) -> None:
    wrong = [ft_request([[VOCAB]], 4), ft_request([prompt(1, 9)], 10_000), ft_request([[]], 4)]
    wrong.append(ft_request([prompt(1, 3)], 4, top_p_decay=column(0.5, 1, np.float32)))

    *failed, (good,) = await execute(instance, [*wrong, ft_request([prompt(8, 4)], 3)])

    assert [[response.error.code for response in each if response.error] for each in failed] == [
        ["invalid_argument"]
    ] * 4
    assert array(good, "output_ids")[0, 0, :7].tolist() == greedy(model, prompt(8, 4), 3)


async def test_stop_words_end_a_row_and_stay_in_it(instance: EngineInstance, model: PreTrainedModel) -> None:
    tokens = prompt(10, 6)
    whole = greedy(model, tokens, 12)
    words = np.array([[[*whole[9:11], whole[14]], [2, 3, -1]]], np.int32)  # two words: of two tokens and of one

    (response,) = await execute_one(instance, ft_request([tokens], 12, stop_words_list=words))

    count = int(array(response, "sequence_length")[0, 0])
    generated = whole[6:]
    ends = [
        place + 1 for place in range(12) if generated[place] == whole[14] or whole[: 6 + place + 1][-2:] == whole[9:11]
    ]
    assert count == 6 + ends[0]
    assert array(response, "output_ids")[0, 0].tolist() == whole[:count] + [EOS] * (18 - count)


async def test_a_stop_word_may_begin_in_the_prompt(instance: EngineInstance, model: PreTrainedModel) -> None:
    tokens = prompt(11, 6)
    whole = greedy(model, tokens, 4)
    words = np.array([[whole[4:7], [3, -1, -1]]], np.int32)

    (response,) = await execute_one(instance, ft_request([tokens], 4, stop_words_list=words))

    assert array(response, "sequence_length").tolist() == [[7]]


async def test_bad_words_are_not_said(instance: EngineInstance, model: PreTrainedModel) -> None:
    tokens = prompt(12, 6)
    whole = greedy(model, tokens, 8)
    bad = [[whole[6]], whole[8:10]]
    words = np.array([[[*bad[0], *bad[1]], [1, 3, -1]]], np.int32)

    (response,) = await execute_one(instance, ft_request([tokens], 8, bad_words_list=words))

    assert array(response, "output_ids")[0, 0].tolist() == greedy(model, tokens, 8, bad_words_ids=bad)


async def test_the_end_id_of_a_row_ends_it_and_fills_its_tail(instance: EngineInstance, model: PreTrainedModel) -> None:
    tokens = prompt(13, 6)
    whole = greedy(model, tokens, 8)
    end = whole[9]
    ends = np.array([[end], [60_000]], np.uint32)  # the second is no token of this model: nothing ends the row

    (response,) = await execute_one(instance, ft_request([tokens, tokens], 8, end_id=ends))

    first = whole[: whole.index(end, 6) + 1]
    told = array(response, "output_ids")
    assert told[0, 0].tolist() == first + [end] * (14 - len(first))
    assert array(response, "sequence_length").tolist() == [[len(first)], [14]]


async def test_each_row_samples_with_its_own_parameters(instance: EngineInstance, model: PreTrainedModel) -> None:
    tokens = prompt(14, 6)
    rows = 5
    asked = ft_request(
        [tokens] * rows,
        12,
        runtime_top_k=np.array([[0], [50], [50], [50], [1]], np.uint32),
        runtime_top_p=np.array([[0.0], [0.0], [0.0], [0.9], [0.9]], np.float32),
        temperature=np.array([[9.0], [9.0], [9.0], [9.0], [9.0]], np.float32),
        random_seed=np.array([[1], [2**64 - 1], [2**64 - 1], [3], [4]], np.uint64),
    )

    (response,) = await execute_one(instance, asked)

    told = array(response, "output_ids")[:, 0].tolist()
    assert told[0] == told[4] == greedy(model, tokens, 12)
    assert told[1] == told[2]
    assert len({tuple(row) for row in told}) == 3


async def test_the_repetition_penalty_is_that_of_transformers(instance: EngineInstance, model: PreTrainedModel) -> None:
    tokens = prompt(15, 6)

    (response,) = await execute_one(instance, ft_request([tokens], 10, repetition_penalty=column(1.7, 1, np.float32)))

    assert array(response, "output_ids")[0, 0].tolist() == greedy(model, tokens, 10, repetition_penalty=1.7)


async def test_a_streamed_answer_grows_by_one_token_a_response(
    streaming: EngineInstance, model: PreTrainedModel
) -> None:
    prompts = [prompt(16, 5), prompt(17, 8)]

    responses = await execute_one(streaming, ft_request(prompts, [9, 4], is_return_log_probs=column(True, 2, np.bool_)))

    expected = [
        greedy(model, asked, count, eos_token_id=OTHER_END) for asked, count in zip(prompts, [9, 4], strict=True)
    ]
    generated = [len(whole) - len(asked) for whole, asked in zip(expected, prompts, strict=True)]
    lengths = [array(response, "sequence_length")[:, 0].tolist() for response in responses]
    assert lengths == [
        [5 + min(step, generated[0]), 8 + min(step, generated[1])] for step in range(1, max(generated) + 1)
    ]
    for response, ends in zip(responses, lengths, strict=True):
        told = array(response, "output_ids")
        for row in range(2):
            assert told[row, 0].tolist() == expected[row][: ends[row]] + [OTHER_END] * (17 - ends[row])
        cumulative, single = array(response, "cum_log_probs"), array(response, "output_log_probs")
        assert cumulative[:, 0].tolist() == pytest.approx(single.sum(-1)[:, 0].tolist(), abs=1e-4)


async def test_beams_are_streamed_as_one_response(streaming: EngineInstance) -> None:
    responses = await execute_one(streaming, ft_request([prompt(18, 5)], 6, beam_width=column(2, 1, np.uint32)))

    assert len(responses) == 1
    assert array(responses[0], "output_ids").shape == (1, 2, 11)


async def test_rows_that_ask_for_nothing_get_their_prompt(instance: EngineInstance, streaming: EngineInstance) -> None:
    for each in (instance, streaming):
        (response,) = await execute_one(each, ft_request([prompt(19, 4), prompt(20, 3)], 0))
        assert array(response, "output_ids").shape == (2, 1, 4)
        assert array(response, "sequence_length").tolist() == [[4], [3]]


async def test_only_the_outputs_that_are_wanted_are_answered(instance: EngineInstance) -> None:
    asked = ft_request([prompt(19, 4)], 2)
    asked.outputs = ("output_ids",)

    (response,) = await execute_one(instance, asked)

    assert list(response.outputs) == ["output_ids"]


async def test_a_cancelled_request_frees_the_engine(streaming: EngineInstance) -> None:
    asked = ft_request([prompt(21, 4)] * 8, 480, end_id=column(60_000, 8, np.uint32))
    collected = Collected(1)
    running = asyncio.create_task(streaming.execute([asked], collected))
    await eventually(lambda: collected.responses[0])

    await streaming.cancel(asked)
    await running

    last = collected.responses[0][-1]
    assert last.error is not None
    assert last.error.code == "cancelled"
    stats = lambda: streaming.engine.stats  # noqa: E731
    await eventually(lambda: stats().num_running == 0 and stats().num_free_blocks == stats().num_blocks)


async def test_a_folder_without_a_model_gives_the_reason(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()

    with pytest.raises(Exception, match=r"Model 'fastertransformer' cannot be loaded: .*nowhere") as caught:
        await load(ModelFolder(tmp_path, 1), config(model_checkpoint_path="nowhere"))

    assert str(tmp_path) not in str(caught.value)
