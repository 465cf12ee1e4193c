"""The clients people have, unchanged: huggingface_hub, openai, and the way vLLM's benchmark reads a stream."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import httpx
import pytest
from openai import OpenAI, UnprocessableEntityError

HUB = """
import json, sys
from huggingface_hub import InferenceClient
from huggingface_hub.errors import TextGenerationError, ValidationError
client = InferenceClient(sys.argv[1])
whole = client.text_generation("The mill", max_new_tokens=8, details=True, decoder_input_details=True, top_n_tokens=2)
stream = list(client.text_generation("The mill", max_new_tokens=8, details=True, stream=True))
best = client.text_generation("The mill", max_new_tokens=4, do_sample=True, best_of=2, details=True)
messages = [{"role": "user", "content": "Hello"}]
chat = client.chat_completion(messages, max_tokens=6, temperature=0.0)
chunks = list(client.chat_completion(messages, max_tokens=6, temperature=0.0, stream=True))
try:
    client.text_generation("x", temperature=-1.0)
    refused = ""
except Exception as error:
    refused = type(error).__name__ + ": " + str(error)
print(json.dumps({
    "text": whole.generated_text,
    "ids": [token.id for token in whole.details.tokens],
    "prefill": [token.text for token in whole.details.prefill],
    "stream_ids": [event.token.id for event in stream],
    "stream_text": stream[-1].generated_text,
    "reason": stream[-1].details.finish_reason,
    "others": len(best.details.best_of_sequences),
    "chat": chat.choices[0].message.content,
    "chunks": "".join(chunk.choices[0].delta.content or "" for chunk in chunks),
    "refused": refused,
}))
"""


def test_the_hubs_client_gets_what_it_asks_for(tgi_url: str, http: httpx.Client) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    command = [sys.executable, "-c", HUB, tgi_url]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)

    body = {"inputs": "The mill", "parameters": {"max_new_tokens": 8, "details": True}}
    expected = http.post("/generate", json=body).json()
    assert got["text"] == got["stream_text"] == expected["generated_text"]
    assert got["ids"] == got["stream_ids"] == [token["id"] for token in expected["details"]["tokens"]]
    assert "".join(got["prefill"]) == "The mill"
    assert got["reason"] == "length"
    assert got["others"] == 1
    assert got["chat"] == got["chunks"]
    assert "temperature` must be strictly positive" in got["refused"]


def test_openais_client_can_chat_stream_and_be_refused(tgi_url: str) -> None:
    with OpenAI(base_url=f"{tgi_url}/v1", api_key="none", max_retries=0) as client:
        asked = {"model": "tgi", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 7, "temperature": 0}
        whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
        chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
        assert "".join(chunk.choices[0].delta.content for chunk in chunks[:-1]) == whole.choices[0].message.content
        assert chunks[-1].choices == []
        assert chunks[-1].usage == whole.usage
        assert whole.usage.completion_tokens == 7
        assert len(whole.choices[0].logprobs.content) == 7
        assert [len(place.top_logprobs) for place in whole.choices[0].logprobs.content] == [2] * 7
        assert (whole.id, whole.choices[0].finish_reason) == ("", "length")

        texts = client.completions.create(model="tgi", prompt=["The mill", "Hello"], max_tokens=5, temperature=0)
        streamed = ["", ""]
        for chunk in client.completions.create(
            model="tgi", prompt=["The mill", "Hello"], max_tokens=5, temperature=0, stream=True
        ):
            streamed[chunk.choices[0].index] += chunk.choices[0].text
        assert streamed == [choice.text for choice in texts.choices]
        assert texts.usage.completion_tokens == 10

        with pytest.raises(UnprocessableEntityError) as caught:
            client.completions.create(model="tgi", prompt=["x"] * 5)
        assert caught.value.response.json()["error_type"] == "batch size exceeded"


def test_a_tool_call_has_tgis_id_and_valid_arguments(tgi_url: str) -> None:
    schema = {"type": "object", "properties": {"day": {"enum": ["Monday", "Friday"]}}, "required": ["day"]}
    tool = {"type": "function", "function": {"name": "open_mill", "parameters": schema}}
    with OpenAI(base_url=f"{tgi_url}/v1", api_key="none", max_retries=0) as client:
        reply = client.chat.completions.create(
            model="tgi",
            messages=[{"role": "user", "content": "When?"}],
            tools=[tool],
            tool_choice={"type": "function", "function": {"name": "open_mill"}},
            seed=3,
        )
    [call] = reply.choices[0].message.tool_calls
    assert (call.id, call.function.name) == ("0", "open_mill")
    assert json.loads(call.function.arguments)["day"] in ("Monday", "Friday")
    assert reply.choices[0].finish_reason == "stop"


def test_a_stream_is_read_as_vllms_benchmark_reads_it(http: httpx.Client) -> None:
    body = {"inputs": "The mill", "parameters": {"max_new_tokens": 12, "do_sample": True, "temperature": 0.01}}
    text, times = "", 0
    with http.stream("POST", "/generate_stream", json=body) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            chunk = line.strip()
            if not chunk or chunk.startswith(":"):
                continue
            data = json.loads(chunk.removeprefix("data:"))
            times += 1
            text = data["generated_text"]
    assert times == 12
    assert text
