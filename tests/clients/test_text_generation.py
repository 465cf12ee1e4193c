"""TGI's own Python client, unchanged: whole and streamed, chat, its classes of errors, sync and asyncio.

Its streamed chat wants a field of every chunk, `tool_calls`, that TGI 3 does not send, and so neither do we.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.fuzzing.rooms import FuzzRoom

pytestmark = pytest.mark.clients

SCRIPT = """
import asyncio, json, sys
from text_generation import AsyncClient, Client
from text_generation.types import Grammar, GrammarType

url = f"http://{sys.argv[1]}"
client = Client(url, timeout=120)
got = {}

whole = client.generate("The mill", max_new_tokens=8, decoder_input_details=True, top_n_tokens=2)
got["text"] = whole.generated_text
got["ids"] = [token.id for token in whole.details.tokens]
got["prefill"] = [token.text for token in whole.details.prefill]
got["reason"] = whole.details.finish_reason.value
got["tops"] = [len(tops) for tops in whole.details.top_tokens]
events = list(client.generate_stream("The mill", max_new_tokens=8))
got["stream_ids"] = [event.token.id for event in events]
got["stream_text"] = events[-1].generated_text
best = client.generate("The mill", do_sample=True, best_of=2, max_new_tokens=4)
got["others"] = len(best.details.best_of_sequences)
seeded = [client.generate("The mill", do_sample=True, seed=7, max_new_tokens=6).generated_text for _ in range(2)]
got["seeds_agree"] = seeded[0] == seeded[1]
grammar = Grammar(type=GrammarType.Regex, value="[0-9]{3}")
got["grammar"] = client.generate("x", max_new_tokens=8, grammar=grammar).generated_text
got["stopped"] = client.generate("The mill", max_new_tokens=8, return_full_text=True).generated_text
messages = [{"role": "user", "content": "Hello"}]
chat = client.chat(messages=messages, max_tokens=6, temperature=0.0)
got["chat"] = chat.choices[0].message.content
got["chat again"] = client.chat(messages=messages, max_tokens=6, temperature=0.0).choices[0].message.content

def refused(ask):
    try:
        ask()
    except Exception as error:
        return [type(error).__module__, type(error).__name__, str(error)]

got["too long"] = refused(lambda: client.generate("x", max_new_tokens=10_000))
got["too long, streamed"] = refused(lambda: list(client.generate_stream("x", max_new_tokens=10_000)))

async def later():
    other = AsyncClient(url, timeout=120)
    whole, *_ = await asyncio.gather(*(other.generate("The mill", max_new_tokens=8) for _ in range(4)))
    events = [event async for event in other.generate_stream("The mill", max_new_tokens=8)]
    return [whole.generated_text, events[-1].generated_text]

got["async"] = asyncio.run(later())
print(json.dumps(got))
"""


def test_the_client_gets_what_it_asks_for(room: FuzzRoom, run_client: Callable[..., Any]) -> None:
    got = run_client("tgi", SCRIPT, room.at.tgi)
    assert len(got["ids"]) == 8
    assert got["ids"] == got["stream_ids"]
    assert {got["text"]} == {got["stream_text"], *got["async"]}
    assert got["stopped"] == "The mill" + got["text"]
    assert "".join(got["prefill"]) == "The mill"
    assert (got["reason"], got["tops"], got["others"]) == ("length", [2] * 8, 1)
    assert got["seeds_agree"]
    assert len(got["grammar"]) == 3
    assert got["grammar"].isdigit()
    assert got["chat"] == got["chat again"]
    for name in ("too long", "too long, streamed"):
        assert got[name][:2] == ["text_generation.errors", "ValidationError"]
        assert "`inputs` tokens + `max_new_tokens` must be <= 1024" in got[name][2]
