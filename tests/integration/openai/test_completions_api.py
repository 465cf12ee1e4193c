"""/v1/completions of a real server: against `transformers` where there is a number to be right about."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import openai
import pytest
import tokenizers
import torch
from openai import OpenAI
from transformers import LlamaForCausalLM

PROMPT = "The mill by the pond"


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(checkpoint / "tokenizer.json"))


@pytest.fixture(scope="module")
def oracle(checkpoint: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()


@torch.inference_mode()
def log_softmax(oracle: LlamaForCausalLM, token_ids: list[int]) -> torch.Tensor:
    return torch.log_softmax(oracle(torch.tensor([token_ids])).logits[0], dim=-1)


def test_greedy_text_is_that_of_transformers(
    client: OpenAI, oracle: LlamaForCausalLM, tokenizer: tokenizers.Tokenizer
) -> None:
    prompt = tokenizer.encode(PROMPT).ids
    with torch.inference_mode():
        expected = oracle.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)[0, len(prompt) :]
    reply = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=24, temperature=0)
    assert reply.choices[0].text == tokenizer.decode(expected.tolist())


def test_scores_of_a_prompt_are_those_of_transformers(
    client: OpenAI, oracle: LlamaForCausalLM, tokenizer: tokenizers.Tokenizer
) -> None:
    prompt = tokenizer.encode(PROMPT).ids
    expected = log_softmax(oracle, prompt)
    reply = client.completions.create(model="tiny", prompt=PROMPT, echo=True, logprobs=3, max_tokens=0)
    logprobs = reply.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs is not None
    assert logprobs.token_logprobs[0] is None
    for place in range(1, len(prompt)):
        assert logprobs.token_logprobs[place] == pytest.approx(float(expected[place - 1, prompt[place]]), abs=1e-3)
    assert "".join(logprobs.tokens or []) == PROMPT


def test_alternatives_are_the_likeliest_tokens(
    client: OpenAI, oracle: LlamaForCausalLM, tokenizer: tokenizers.Tokenizer
) -> None:
    prompt = tokenizer.encode(PROMPT).ids
    values, _ = log_softmax(oracle, prompt)[-1].topk(5)
    reply = client.completions.create(model="tiny", prompt=PROMPT, logprobs=5, max_tokens=1, temperature=0)
    assert reply.choices[0].logprobs is not None
    assert reply.choices[0].logprobs.top_logprobs is not None
    got = sorted(reply.choices[0].logprobs.top_logprobs[0].values(), reverse=True)
    assert got == pytest.approx(values.tolist(), abs=1e-3)


def test_a_stream_and_a_whole_reply_say_the_same(client: OpenAI) -> None:
    options: dict[str, Any] = {"model": "tiny", "prompt": PROMPT, "max_tokens": 40, "seed": 7}
    whole = client.completions.create(**options)
    streamed = "".join(chunk.choices[0].text for chunk in client.completions.create(**options, stream=True))
    assert streamed == whole.choices[0].text


def test_the_same_seed_gives_the_same_text_whatever_else_runs(client: OpenAI) -> None:
    alone = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=20, seed=3).choices[0].text
    among = client.completions.create(model="tiny", prompt=[PROMPT] * 8, max_tokens=20, seed=3)
    assert {choice.text for choice in among.choices} == {alone}
    assert client.completions.create(model="tiny", prompt=PROMPT, max_tokens=20, seed=4).choices[0].text != alone


def test_choices_of_a_prompt_differ_and_come_back_with_their_seed(client: OpenAI) -> None:
    texts = [
        [choice.text for choice in client.completions.create(model="tiny", prompt=PROMPT, n=4, seed=5).choices]
        for _ in range(2)
    ]
    assert len(set(texts[0])) == 4
    assert texts[0] == texts[1]


def test_a_forbidden_token_never_comes_and_a_forced_one_always(client: OpenAI, tokenizer: tokenizers.Tokenizer) -> None:
    token = tokenizer.token_to_id("a")
    forced = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=5, logit_bias={str(token): 100})
    assert forced.choices[0].text == "aaaaa"
    greedy = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=1, temperature=0, logprobs=1)
    assert greedy.choices[0].logprobs is not None
    best = tokenizer.encode(greedy.choices[0].text).ids[0]
    other = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=1, temperature=0, logit_bias={str(best): -100}
    )
    assert other.choices[0].text != greedy.choices[0].text


@pytest.mark.parametrize("is_list", [True, False])
def test_text_ends_before_a_stop_string(client: OpenAI, tokenizer: tokenizers.Tokenizer, is_list: bool) -> None:
    bias = {str(tokenizer.token_to_id("a")): 100}
    reply = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=20, logit_bias=bias, stop=["zz", "aaa"] if is_list else "aaa"
    )
    assert (reply.choices[0].text, reply.choices[0].finish_reason) == ("", "stop")


def test_a_stop_string_is_kept_when_it_is_asked_for(client: OpenAI, tokenizer: tokenizers.Tokenizer) -> None:
    bias = {str(tokenizer.token_to_id("a")): 100}
    extra = {"include_stop_str_in_output": True}
    reply = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=20, logit_bias=bias, stop="aaa", extra_body=extra
    )
    assert reply.choices[0].text == "aaa"


def test_a_stop_token_ends_the_text(client: OpenAI, tokenizer: tokenizers.Tokenizer) -> None:
    token = tokenizer.token_to_id("a")
    reply = client.completions.create(
        model="tiny", prompt=PROMPT, logit_bias={str(token): 100}, extra_body={"stop_token_ids": [token]}
    )
    assert reply.choices[0].finish_reason == "stop"
    assert reply.choices[0].model_dump()["stop_reason"] == token


def test_a_sequence_goes_on_past_its_end_when_told_to(client: OpenAI, tokenizer: tokenizers.Tokenizer) -> None:
    bias = {str(tokenizer.token_to_id("<|im_end|>")): 100}
    ended = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=6, logit_bias=bias)
    assert (ended.choices[0].finish_reason, ended.choices[0].text) == ("stop", "")
    ignored = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=6, logit_bias=bias, extra_body={"ignore_eos": True}
    )
    assert ignored.usage is not None
    assert (ignored.choices[0].finish_reason, ignored.usage.completion_tokens) == ("length", 6)


def test_a_penalty_breaks_a_loop(client: OpenAI, tokenizer: tokenizers.Tokenizer) -> None:
    bias = {str(tokenizer.token_to_id("a")): 1.5}
    options: dict[str, Any] = {
        "model": "tiny",
        "prompt": PROMPT,
        "max_tokens": 12,
        "temperature": 0,
        "logit_bias": bias,
    }
    looped = client.completions.create(**options).choices[0].text
    free = client.completions.create(**options, frequency_penalty=2.0, presence_penalty=2.0).choices[0].text
    assert looped.count("a") > free.count("a")


def test_a_prompt_seen_before_is_not_computed_again(client: OpenAI) -> None:
    prompt = "Water turns the wheel. " * 12
    usages = [client.completions.create(model="tiny", prompt=prompt, max_tokens=2).usage for _ in range(2)]
    cached = [usage.prompt_tokens_details.cached_tokens for usage in usages if usage and usage.prompt_tokens_details]
    assert cached[0] == 0
    assert cached[1] > 30


def test_prompts_with_other_salts_share_nothing(client: OpenAI) -> None:
    prompt = "Salt keeps tenants apart. " * 12
    for salt in ("one", "two"):
        reply = client.completions.create(model="tiny", prompt=prompt, max_tokens=1, extra_body={"cache_salt": salt})
        assert reply.usage is not None
        assert reply.usage.prompt_tokens_details is not None
        assert reply.usage.prompt_tokens_details.cached_tokens == 0


def test_prompt_logprobs_sum_to_the_score(client: OpenAI) -> None:
    reply = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=1, extra_body={"prompt_logprobs": 2})
    shown = reply.choices[0].model_dump()["prompt_logprobs"]
    assert shown[0] is None
    for entry in shown[1:]:
        assert 2 <= len(entry) <= 3
        assert all(math.isfinite(token["logprob"]) and token["rank"] >= 1 for token in entry.values())


def test_the_best_of_several_is_the_likeliest(client: OpenAI) -> None:
    reply = client.completions.create(model="tiny", prompt=PROMPT, n=1, best_of=6, seed=1, max_tokens=4, logprobs=0)
    every = client.completions.create(model="tiny", prompt=PROMPT, n=6, seed=1, max_tokens=4, logprobs=0)

    def score(choice: Any) -> float:
        return sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs)

    assert reply.choices[0].text == max(every.choices, key=score).text


def test_past_the_queue_requests_are_refused_at_once(client: OpenAI) -> None:
    many: dict[str, Any] = {"model": "tiny", "prompt": PROMPT, "n": 90, "extra_body": {"ignore_eos": True}}
    with client.completions.create(**many, max_tokens=400, stream=True) as running:
        next(iter(running))
        with pytest.raises(openai.RateLimitError) as caught:
            client.completions.create(**many, max_tokens=1)
    assert caught.value.code == "queue_full"
    assert int(caught.value.response.headers["retry-after"]) >= 1


def test_more_choices_than_there_is_room_for_can_never_run(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="tiny", prompt=PROMPT, n=128, max_tokens=1)
    assert caught.value.param == "n"
