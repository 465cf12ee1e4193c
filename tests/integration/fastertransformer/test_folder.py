"""A model repository with a `fastertransformer` folder as its users have it: config.pbtxt, config.ini, requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
import torch
from transformers import PreTrainedModel

from millpond.config.load import make_config
from millpond.serve.backends.fastertransformer import FasterTransformerBackend
from millpond.serve.repository.repository import ModelRepository
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.registry import Servables
from tests.support.engine_servables import request
from tests.support.tiny_directory import EOS, write_model
from tests.support.tiny_models import make_model

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCALARS = [
    "runtime_top_k:UINT32",
    "runtime_top_p:FP32",
    "beam_search_diversity_rate:FP32",
    "temperature:FP32",
    "len_penalty:FP32",
    "repetition_penalty:FP32",
    "random_seed:UINT64",
    "is_return_log_probs:BOOL",
    "beam_width:UINT32",
    "start_id:UINT32",
    "end_id:UINT32",
    "prompt_learning_task_name_ids:UINT32",
    "top_p_decay:FP32",
    "top_p_min:FP32",
    "top_p_reset_ids:UINT32",
]


def config_text(checkpoint: Path, *, model_type: str = "GPT", extra: str = "") -> str:
    scalars = ",\n".join(
        f'{{ name: "{name}" data_type: TYPE_{kind} dims: [ 1 ] reshape: {{ shape: [ ] }} optional: true }}'
        for name, kind in (scalar.split(":") for scalar in SCALARS)
    )
    parameters = {
        "tensor_para_size": "2",
        "pipeline_para_size": "1",
        "data_type": "fp32",
        "model_type": model_type,
        "model_checkpoint_path": str(checkpoint),
        "int8_mode": "0",
        "enable_custom_all_reduce": "0",
        "millpond.cache.bytes": "8MiB",
    }
    pairs = "\n".join(
        f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}' for key, value in parameters.items()
    )
    return f"""
name: "fastertransformer"
backend: "fastertransformer"
default_model_filename: "bloom"
max_batch_size: 1024
model_transaction_policy {{ decoupled: False }}
input [
  {{ name: "input_ids" data_type: TYPE_UINT32 dims: [ -1 ] }},
  {{ name: "input_lengths" data_type: TYPE_UINT32 dims: [ 1 ] reshape: {{ shape: [ ] }} }},
  {{ name: "request_output_len" data_type: TYPE_UINT32 dims: [ -1 ] }},
  {{ name: "stop_words_list" data_type: TYPE_INT32 dims: [ 2, -1 ] optional: true }},
  {{ name: "bad_words_list" data_type: TYPE_INT32 dims: [ 2, -1 ] optional: true }},
  {{ name: "request_prompt_embedding" data_type: TYPE_FP16 dims: [ -1, -1 ] optional: true }},
  {scalars}
]
output [
  {{ name: "output_ids" data_type: TYPE_UINT32 dims: [ -1, -1 ] }},
  {{ name: "sequence_length" data_type: TYPE_UINT32 dims: [ -1 ] }},
  {{ name: "response_input_lengths" data_type: TYPE_INT32 dims: [ -1 ] }},
  {{ name: "cum_log_probs" data_type: TYPE_FP32 dims: [ -1 ] }},
  {{ name: "output_log_probs" data_type: TYPE_FP32 dims: [ -1, -1 ] }}
]
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
{pairs}
{extra}
"""


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return make_model("bloom", seed=1)


@pytest.fixture(scope="module")
def folder(model: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository."""
    root = tmp_path_factory.mktemp("triton")
    model_folder = root / "model_repo" / "fastertransformer"
    (model_folder / "1").mkdir(parents=True)
    (model_folder / "1" / "config.ini").write_text(f"[gpt]\nhead_num = 3\nstart_id = 1\nend_id = {EOS}\n")
    (root / "bloom").mkdir()
    write_model(root / "bloom", model)
    (model_folder / "config.pbtxt").write_text(config_text(root / "bloom"))
    return root / "model_repo"


def make_servables() -> Servables:
    base = make_config({"runtime.threads": 1, "scheduler.max_sequences": 16})
    return Servables({"fastertransformer": FasterTransformerBackend(base)})


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def servables(folder: Path) -> AsyncIterator[Servables]:
    servables = make_servables()
    assert await ModelRepository([folder], servables).start() == []
    yield servables
    await servables.close()


def column(*values: float, kind: type = np.uint32) -> np.ndarray:
    return np.array([[value] for value in values], kind)


async def test_the_folder_is_served_as_it_is(servables: Servables, model: PreTrainedModel) -> None:
    tokens = [9, 80, 13, 200]
    ids = torch.tensor([tokens])
    asked = request(
        "fastertransformer",
        input_ids=np.array([tokens], np.uint32),
        input_lengths=column(4),
        request_output_len=column(32),
    )
    asked.outputs = ("output_ids",)

    response = await servables.infer(asked)

    expected = model.generate(  # type: ignore[operator]  # transformers types it as a tensor
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=32, do_sample=False, pad_token_id=EOS
    )[0].tolist()
    output_ids = response.outputs["output_ids"].array
    assert output_ids.shape == (1, 1, 36)
    assert output_ids[0, 0].tolist() == expected + [EOS] * (36 - len(expected))


async def test_the_tensors_that_the_old_tools_send_are_taken(servables: Servables) -> None:
    """All of them at their neutral values, ids beyond a small vocabulary, and lists of no words."""
    rows = 8
    empty = np.array([[[0], [-1]]] * rows, np.int32)
    asked = request(
        "fastertransformer",
        input_ids=np.arange(10, 10 + rows * 8, dtype=np.uint32).reshape(rows, 8),
        input_lengths=column(*[8] * rows),
        request_output_len=column(*[24] * rows),
        start_id=column(*[50256] * rows),
        end_id=column(*[50256] * rows),
        beam_search_diversity_rate=column(*[0] * rows, kind=np.float32),
        temperature=column(*[1] * rows, kind=np.float32),
        len_penalty=column(*[1] * rows, kind=np.float32),
        repetition_penalty=column(*[1] * rows, kind=np.float32),
        random_seed=column(*[0] * rows, kind=np.uint64),
        is_return_log_probs=column(*[1] * rows, kind=np.bool_),
        beam_width=column(*[1] * rows),
        runtime_top_k=column(*[1] * rows),
        runtime_top_p=column(*[0] * rows, kind=np.float32),
        stop_words_list=empty,
        bad_words_list=empty,
    )

    response = await servables.infer(asked)

    assert response.error is None
    assert response.outputs["output_ids"].array.shape == (rows, 1, 32)
    assert response.outputs["sequence_length"].array.tolist() == [[32]] * rows
    assert response.outputs["output_log_probs"].array.shape == (rows, 1, 24)


async def test_many_clients_at_once_each_get_their_own(servables: Servables) -> None:
    def asked(seed: int) -> object:
        return request(
            "fastertransformer",
            input_ids=np.array([[10 + seed, 20, 30]], np.uint32),
            input_lengths=column(3),
            request_output_len=column(6),
        )

    alone = [(await servables.infer(asked(seed))).outputs["output_ids"].array.tolist() for seed in range(24)]  # type: ignore[arg-type]
    together = await asyncio.gather(*(servables.infer(asked(seed)) for seed in range(24)))  # type: ignore[arg-type]

    assert [response.outputs["output_ids"].array.tolist() for response in together] == alone


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "T5"}, "model_type T5 is not served"),
        ({"model_type": "BERT"}, "model_type BERT is not served"),
        ({"extra": "sequence_batching { }"}, "interactive generation"),
        ({"extra": 'input { name: "session_len" data_type: TYPE_UINT32 dims: [ 1 ] }'}, "session_len"),
    ],
)
async def test_what_is_not_served_is_the_reason_in_the_index(
    folder: Path, tmp_path: Path, change: dict[str, str], words: str
) -> None:
    model_folder = tmp_path / "fastertransformer"
    (model_folder / "1").mkdir(parents=True)
    (model_folder / "config.pbtxt").write_text(config_text(folder.parent / "bloom", **change))  # type: ignore[arg-type]
    servables = make_servables()

    failures = await ModelRepository([tmp_path], servables).start()
    await servables.close()

    assert len(failures) == 1
    assert words in failures[0].error.message


async def test_a_converted_checkpoint_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "c" / "1-gpu").mkdir(parents=True)
    (tmp_path / "c" / "1-gpu" / "config.ini").write_text("[gpt]\nhead_num = 3\n")
    model_folder = tmp_path / "r" / "fastertransformer"
    (model_folder / "1").mkdir(parents=True)
    (model_folder / "config.pbtxt").write_text(config_text(tmp_path / "c" / "1-gpu"))
    servables = make_servables()

    (failure,) = await ModelRepository([tmp_path / "r"], servables).start()
    await servables.close()

    assert isinstance(failure.error, ServableError)
    assert "converted for FasterTransformer" in failure.error.message
