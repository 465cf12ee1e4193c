"""`LLM` on a tiny real model: results equal to transformers', in the shape vLLM's users know."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from millpond import LLM, CompletionOutput, RequestOutput, SamplingParams
from millpond.base.errors import CheckpointError, ConfigError, ContextLengthError, RequestError
from tests.support.tiny_directory import EOS, write_model
from tests.support.tiny_models import VOCAB, make_model

GREEDY = SamplingParams(temperature=0.0, max_tokens=24)


def prompt(seed: int, length: int = 12) -> list[int]:
    return [random.Random(seed).randrange(3, VOCAB) for _ in range(length)]


def make_peaked_model() -> PreTrainedModel:
    """Small random models find all tokens about equally likely; rounding would choose between beams of equal score."""
    model = make_model("llama")
    model.lm_head.weight.data *= 8
    return model


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return make_peaked_model()


@pytest.fixture(scope="module")
def path(model: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("llama"), model)


@pytest.fixture(scope="module")
def llm(path: str) -> Iterator[LLM]:
    with LLM(path, dtype="float32", threads=1, cache_bytes="8MiB", max_sequences=16) as llm:
        yield llm


def generate_with_transformers(model: PreTrainedModel, tokens: list[int], **options: object) -> torch.Tensor:
    ids = torch.tensor([tokens])
    output = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **options)  # type: ignore[operator]
    return output[:, len(tokens) :]


def logprobs_with_transformers(model: PreTrainedModel, tokens: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([tokens])).logits[0].float().log_softmax(-1)


def completion(result: RequestOutput) -> CompletionOutput:
    (only,) = result.outputs
    return only


def test_greedy_tokens_are_those_of_transformers(llm: LLM, model: PreTrainedModel) -> None:
    prompts = [prompt(i, 1 + 9 * i) for i in range(20)]
    for tokens, result in zip(prompts, llm.generate(prompts, GREEDY, use_tqdm=False), strict=True):
        expected = generate_with_transformers(model, tokens, max_new_tokens=24)[0].tolist()
        assert completion(result).token_ids == expected
        assert result.prompt_token_ids == tokens


def test_text_prompts_are_encoded_and_answers_decoded(llm: LLM) -> None:
    (result,) = llm.generate("héllo", GREEDY, use_tqdm=False)
    assert result.prompt == "héllo"
    assert llm.text.tokenizer.decode(result.prompt_token_ids) == "héllo"
    assert completion(result).text == llm.text.tokenizer.decode(completion(result).token_ids)


def test_one_prompt_of_token_ids_is_one_prompt(llm: LLM) -> None:
    (result,) = llm.generate(prompt(1), GREEDY, use_tqdm=False)
    assert result.prompt_token_ids == prompt(1)
    assert result.prompt is None


def test_logprobs_have_one_entry_a_token_with_the_chosen_one_in_it(llm: LLM, model: PreTrainedModel) -> None:
    params = SamplingParams(temperature=1.0, seed=5, max_tokens=10, logprobs=3)
    result = completion(llm.generate([prompt(2)], params, use_tqdm=False)[0])
    expected = logprobs_with_transformers(model, prompt(2) + result.token_ids)[len(prompt(2)) - 1 :]
    assert result.logprobs is not None
    assert len(result.logprobs) == len(result.token_ids) == 10
    for token_id, told, row in zip(result.token_ids, result.logprobs, expected, strict=False):
        best = row.topk(3).indices.tolist()
        assert set(told) == {token_id, *best}
        assert told[token_id].rank == int((row > row[token_id]).sum()) + 1
        assert told[best[0]].rank == 1
        for other, logprob in told.items():
            assert logprob.logprob == pytest.approx(float(row[other]), abs=1e-3)
            assert logprob.decoded_token == llm.text.tokenizer.token_bytes(other).decode("utf-8", "replace")
    assert result.cumulative_logprob == pytest.approx(
        sum(told[token_id].logprob for token_id, told in zip(result.token_ids, result.logprobs, strict=True))
    )


def test_prompt_logprobs_judge_the_prompt(llm: LLM, model: PreTrainedModel) -> None:
    tokens = prompt(3, 70)
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
    told = llm.generate([tokens], params, use_tqdm=False)[0].prompt_logprobs
    expected = logprobs_with_transformers(model, tokens)
    assert told is not None
    assert told[0] is None
    logprobs = [judged[token].logprob for judged, token in zip(told[1:], tokens[1:], strict=True) if judged]
    assert logprobs == pytest.approx([float(expected[i, token]) for i, token in enumerate(tokens[1:])], abs=1e-3)


def test_without_logprobs_there_are_none(llm: LLM) -> None:
    result = llm.generate([prompt(2)], GREEDY, use_tqdm=False)[0]
    assert result.prompt_logprobs is None
    assert (completion(result).logprobs, completion(result).cumulative_logprob) == (None, None)


def test_each_prompt_may_have_its_own_parameters(llm: LLM) -> None:
    params = [SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True) for count in (3, 7)]
    results = llm.generate([prompt(1), prompt(2)], params, use_tqdm=False)
    assert [len(completion(result).token_ids) for result in results] == [3, 7]
    assert completion(results[0]).finish_reason == "length"


def test_choices_come_in_order(llm: LLM) -> None:
    params = SamplingParams(n=4, seed=1, max_tokens=8, ignore_eos=True)
    outputs = llm.generate([prompt(1)], params, use_tqdm=False)[0].outputs
    assert [output.index for output in outputs] == [0, 1, 2, 3]
    assert len({tuple(output.token_ids) for output in outputs}) == 4


def test_a_stop_string_ends_the_text_before_it(llm: LLM) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
    whole = completion(llm.generate([prompt(4)], params, use_tqdm=False)[0]).text
    stop = whole[5:8]
    result = completion(
        llm.generate([prompt(4)], SamplingParams(temperature=0.0, max_tokens=24, stop=(stop,)), use_tqdm=False)[0]
    )
    assert result.text == whole[: whole.index(stop)]
    assert (result.finish_reason, result.stop_reason) == ("stop", stop)
    assert llm.stats.num_running == 0


def test_more_prompts_than_the_engine_runs_at_once_all_come_back_in_order(llm: LLM) -> None:
    prompts = [prompt(i, 5) for i in range(100)]
    results = llm.generate(prompts, SamplingParams(temperature=0.0, max_tokens=3), use_tqdm=False)
    assert [result.prompt_token_ids for result in results] == prompts
    assert llm.stats.num_free_blocks == llm.stats.num_blocks


def test_a_conversation_goes_through_the_chat_template(llm: LLM) -> None:
    (result,) = llm.chat([{"role": "user", "content": "hello"}], GREEDY, use_tqdm=False)
    assert result.prompt == "[user] hello\n"
    assert result.prompt_token_ids == llm.text.tokenizer.encode("[user] hello\n", add_special_tokens=False)


def test_several_conversations_are_one_batch(llm: LLM) -> None:
    conversations = [[{"role": "user", "content": name}] for name in ("a", "b")]
    results = llm.chat(conversations, GREEDY, use_tqdm=False)
    assert [result.prompt for result in results] == ["[user] a\n", "[user] b\n"]


def test_no_prompts_give_no_results(llm: LLM) -> None:
    assert llm.generate([], GREEDY) == []


@pytest.mark.parametrize(
    ("prompts", "params", "error"),
    [
        ([[]], GREEDY, RequestError),
        ([[5], [VOCAB]], GREEDY, RequestError),
        ([[5] * 600], GREEDY, ContextLengthError),
        ([[5]], SamplingParams(top_p=2.0), RequestError),
        ([[5]], [GREEDY, GREEDY], RequestError),
    ],
)
def test_a_wrong_prompt_stops_the_batch_before_it_runs(
    llm: LLM, prompts: list[list[int]], params: SamplingParams, error: type[Exception]
) -> None:
    steps = llm.stats.steps_total
    with pytest.raises(error):
        llm.generate(prompts, params, use_tqdm=False)
    assert llm.stats.steps_total == steps


def test_progress_goes_to_standard_error(llm: LLM, capfd: pytest.CaptureFixture[str]) -> None:
    llm.generate([prompt(1)], GREEDY)
    assert "completing prompts" in capfd.readouterr().err.lower()


@pytest.mark.parametrize(("name", "near"), [("cache_byte", "cache_bytes"), ("thread", "threads")])
def test_an_unknown_setting_is_refused_with_the_nearest_known_one(path: str, name: str, near: str) -> None:
    with pytest.raises(ConfigError, match=near):
        LLM(path, **{name: 1})


def test_a_directory_that_is_no_model_is_a_checkpoint_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        LLM(str(tmp_path))


def test_closing_twice_is_fine(path: str) -> None:
    llm = LLM(path, threads=1, cache_bytes="1MiB")
    llm.close()
    llm.close()


BEAMS = [
    SamplingParams(beam_width=2, max_tokens=12),
    SamplingParams(beam_width=4, max_tokens=20, early_stopping=True),
    SamplingParams(beam_width=3, max_tokens=16, length_penalty=0.0),
    SamplingParams(beam_width=3, max_tokens=20, length_penalty=2.0),
    SamplingParams(beam_width=5, max_tokens=20, length_penalty=-1.0, early_stopping=True),
    SamplingParams(beam_width=1, max_tokens=8),
]


@pytest.fixture(scope="module")
def terse_model() -> PreTrainedModel:
    """The model with so many end-of-sequence tokens that most beams end early."""
    model = make_peaked_model()
    model.generation_config.eos_token_id = model.config.eos_token_id = [EOS, *range(100, 130)]
    return model


@pytest.fixture(scope="module")
def terse_llm(terse_model: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    path = write_model(tmp_path_factory.mktemp("terse"), terse_model)
    with LLM(path, dtype="float32", threads=1, cache_bytes="8MiB") as llm:
        yield llm


@pytest.mark.parametrize("params", BEAMS)
def test_beams_are_those_of_transformers(llm: LLM, model: PreTrainedModel, params: SamplingParams) -> None:
    check_beams(llm, model, params)


@pytest.mark.parametrize("params", BEAMS)
def test_beams_that_end_early_are_those_of_transformers(
    terse_llm: LLM, terse_model: PreTrainedModel, params: SamplingParams
) -> None:
    ends = check_beams(terse_llm, terse_model, params)
    assert "stop" in ends


def check_beams(llm: LLM, model: PreTrainedModel, params: SamplingParams) -> set[str | None]:
    ends: set[str | None] = set()
    for seed in range(3):
        expected = generate_with_transformers(
            model,
            prompt(seed, 40),
            num_beams=params.beam_width,
            num_return_sequences=params.beam_width,
            max_new_tokens=params.max_tokens,
            length_penalty=params.length_penalty,
            early_stopping=params.early_stopping,
        )
        (result,) = llm.beam_search([prompt(seed, 40)], params, use_tqdm=False)
        for output, sequence in zip(result.outputs, expected.tolist(), strict=True):
            assert output.token_ids == sequence[: len(output.token_ids)]
            assert set(sequence[len(output.token_ids) :]) <= {0, EOS}  # what transformers fills up with
            ends.add(output.finish_reason)
    return ends


def test_generate_returns_the_n_best_beams(llm: LLM) -> None:
    params = SamplingParams(beam_width=4, n=2, max_tokens=6)
    every = llm.beam_search([prompt(9)], params, use_tqdm=False)[0].outputs
    best = llm.generate([prompt(9)], params, use_tqdm=False)[0].outputs
    assert [output.token_ids for output in best] == [output.token_ids for output in every[:2]]


def test_beams_share_the_prompt_in_the_cache(llm: LLM) -> None:
    before = llm.stats
    llm.beam_search([prompt(50, 96)], SamplingParams(beam_width=4, max_tokens=8), use_tqdm=False)
    asked = llm.stats.prefix_query_tokens_total - before.prefix_query_tokens_total
    hit = llm.stats.prefix_hit_tokens_total - before.prefix_hit_tokens_total
    assert hit > 0.85 * asked * (1 - 1 / 29)
