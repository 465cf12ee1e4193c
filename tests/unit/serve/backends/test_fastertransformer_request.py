"""What the tensors of a FasterTransformer request mean, and which of them are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from millpond.serve.backends.ft_request import BEAM_WIDTHS, FtModel, FtRequest, parse_request
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.tensors import Tensor
from tests.support.engine_servables import tensor

MODEL = FtModel(vocab_size=100, end_id=2)


def column(*values: float, kind: type = np.uint32) -> np.ndarray:
    return np.array([[value] for value in values], kind)


def parse(model: FtModel = MODEL, **changes: Any) -> FtRequest:
    """Two rows; a change to None leaves a tensor out."""
    arrays: dict[str, Any] = {
        "input_ids": np.array([[5, 6, 7], [8, 2, 2]], np.uint32),
        "input_lengths": column(3, 1),
        "request_output_len": np.array([[4, 9], [6, 9]], np.uint32),  # only the first column counts
    }
    arrays |= changes
    tensors: dict[str, Tensor] = {name: tensor(name, array) for name, array in arrays.items() if array is not None}
    return parse_request(tensors, model)


def test_padding_is_no_part_of_a_prompt() -> None:
    asked = parse()

    assert [row.prompt for row in asked.rows] == [[5, 6, 7], [8]]
    assert [row.num_tokens for row in asked.rows] == [4, 6]
    assert (asked.max_input, asked.max_output, asked.beam_width) == (3, 6, 1)


def test_columns_may_come_without_their_last_dimension() -> None:
    asked = parse(input_lengths=np.array([3, 1], np.uint32), request_output_len=np.array([4, 6], np.uint32))

    assert asked == parse()


@pytest.mark.parametrize(
    ("top_k", "top_p", "expected"),
    [
        (None, None, (0.0, 0, 1.0)),
        (0, 0.0, (0.0, 0, 1.0)),
        (1, 0.9, (0.0, 0, 1.0)),
        (40, None, (0.5, 40, 1.0)),
        (40, 0.0, (0.5, 40, 1.0)),
        (0, 0.75, (0.5, 0, 0.75)),
        (40, 0.75, (0.5, 40, 0.75)),
        (40, 7.0, (0.5, 40, 1.0)),
    ],
)
def test_top_k_and_top_p_choose_as_in_fastertransformer(
    top_k: int | None, top_p: float | None, expected: tuple[float, int, float]
) -> None:
    asked = parse(
        temperature=column(0.5, 0.5, kind=np.float32),
        runtime_top_k=None if top_k is None else column(top_k, top_k),
        runtime_top_p=None if top_p is None else column(top_p, top_p, kind=np.float32),
    )

    params = asked.rows[1].params
    assert (params.temperature, params.top_k, params.top_p) == expected


@pytest.mark.parametrize("width", range(34))
def test_beam_widths_that_are_not_compiled_in_fall_back_to_one(width: int) -> None:
    asked = parse(beam_width=column(width, 1))

    assert asked.beam_width == (width if width in BEAM_WIDTHS else 1)
    assert all(row.params.beam_width == row.params.n == asked.beam_width for row in asked.rows)


def test_a_seed_uses_all_its_bits() -> None:
    seeds = [2**64 - 1, 2**63]
    asked = parse(runtime_top_k=column(5, 5), random_seed=column(*seeds, kind=np.uint64))

    assert [row.params.seed for row in asked.rows] == [-1, -(2**63)]


def test_the_end_of_a_row_is_its_own_then_the_folders_then_the_models() -> None:
    own, folders, models = parse(end_id=column(9, 60_000)), parse(FtModel(100, 7, is_own_end=True)), parse()

    assert [(row.end_id, row.params.stop_token_ids, row.params.ignore_eos) for row in own.rows] == [
        (9, (9,), True),
        (60_000, (), True),
    ]
    assert [(row.end_id, row.params.stop_token_ids, row.params.ignore_eos) for row in folders.rows] == [
        (7, (7,), True)
    ] * 2
    assert [(row.end_id, row.params.stop_token_ids, row.params.ignore_eos) for row in models.rows] == [
        (2, (), False)
    ] * 2


def test_word_lists_are_read_up_to_their_padding() -> None:
    words = np.array([[[3, 4, 5, 6], [1, 4, -1, -1]], [[0, 0, 0, 0], [-1, -1, -1, -1]]], np.int32)

    asked = parse(stop_words_list=words, bad_words_list=words)

    assert asked.rows[0].params.stop_token_ids == (3,)
    assert asked.rows[0].stop_words == ((4, 5, 6),)
    assert asked.rows[0].params.bad_words_ids == ((3,), (4, 5, 6))
    assert (asked.rows[1].stop_words, asked.rows[1].params.bad_words_ids) == ((), ())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"input_lengths": column(4, 1)}, "Row 0: input_lengths is 4"),
        ({"input_lengths": column(3)}, "input_lengths has shape"),
        ({"request_output_len": column(1, 2**31)}, "Row 1: request_output_len"),
        ({"request_output_len": np.zeros((2, 0), np.uint32)}, "request_output_len has shape"),
        ({"input_ids": np.zeros((0, 3), np.uint32)}, "input_ids has shape"),
        ({"stop_words_list": np.zeros((2, 3, 4), np.int32)}, "stop_words_list has shape"),
        ({"bad_words_list": np.array([[[1, 2], [2, 1]]] * 2, np.int32)}, "bad_words_list, row 0"),
        ({"bad_words_list": np.array([[[1, 2], [1, 3]]] * 2, np.int32)}, "bad_words_list, row 0"),
        ({"bad_words_list": np.array([[[1, -2], [1, 2]]] * 2, np.int32)}, "bad_words_list, row 0"),
        ({"top_p_decay": column(1, 0.5, kind=np.float32)}, "top_p_decay"),
        ({"is_return_context_embeddings": column(1, 0, kind=np.bool_)}, "context_embeddings"),
        ({"request_prompt_embedding": np.zeros((2, 1, 4), np.float16)}, "prompt and prefix tuning"),
        ({"request_prompt_lengths": column(0, 3)}, "prompt and prefix tuning"),
        ({"prompt_learning_task_name_ids": column(1, 1)}, "prompt and prefix tuning"),
        (
            {"beam_width": column(2, 2), "beam_search_diversity_rate": column(0, 0.5, kind=np.float32)},
            "beam_search_diversity_rate",
        ),
        ({"beam_width": column(2, 2), "stop_words_list": np.array([[[1, 2], [2, -1]]] * 2, np.int32)}, "one token"),
    ],
)
def test_what_cannot_be_served_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ServableError) as caught:
        parse(**changes)

    assert caught.value.code == "invalid_argument"
    assert words in caught.value.message


def test_neutral_values_of_what_is_not_served_pass() -> None:
    asked = parse(
        top_p_decay=column(1, 0, kind=np.float32),
        is_return_context_embeddings=column(0, 0, kind=np.bool_),
        request_prompt_lengths=column(0, 0),
        request_prompt_type=column(0, 0),
        prompt_learning_task_name_ids=column(0, 0),
        beam_search_diversity_rate=column(0.5, 0.5, kind=np.float32),  # without beams it means nothing
    )

    assert asked == parse()
