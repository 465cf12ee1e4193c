"""Spreading instances over workers against cutting and joining by hand."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from millpond.serve.backends.splitting import Gathering, share_out
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.messages import InferRequest, InferResponse
from millpond.serve.servables.tensors import Tensor


class Kept:
    def __init__(self) -> None:
        self.sent: list[tuple[int, InferResponse]] = []

    def send(self, index: int, response: InferResponse) -> None:
        self.sent.append((index, response))

    def cancelled(self, index: int) -> bool:
        return index == 1

    def reschedule(self, index: int) -> None:
        raise AssertionError("nobody asked for it")


def make_request(start: int, rows: int) -> InferRequest:
    return InferRequest("m", {"x": Tensor("x", "INT64", np.arange(start, start + rows).reshape(rows, 1))})


def answer(request: InferRequest) -> InferResponse:
    return InferResponse("m", 1, {"y": Tensor("y", "INT64", request.inputs["x"].array * 10)})


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(1, 5), st.randoms(use_true_random=False))
def test_shares_are_even_and_results_come_back_in_order(sizes: list[int], workers: int, random: object) -> None:
    starts = np.cumsum([0, *sizes]).tolist()
    requests = [make_request(start, rows) for start, rows in zip(starts, sizes, strict=False)]
    shares = share_out(requests, workers, is_batched=True)
    assert len(shares) <= workers
    counts = [sum(len(part.inputs["x"].array) for part in share.requests) for share in shares]
    assert sum(counts) == sum(sizes)
    assert max(counts) <= -(-sum(sizes) // max(1, min(workers, sum(sizes))))
    kept = Kept()
    gathering = Gathering(requests, shares, kept)
    work = [(gathering.replies(share), n, part) for share in shares for n, part in enumerate(share.requests)]
    random.shuffle(work)  # type: ignore[attr-defined]  # a sequence that is a list
    for replies, index, part in work:
        replies.send(index, answer(part))
    assert sorted(index for index, _ in kept.sent) == list(range(len(sizes)))
    for index, response in kept.sent:
        np.testing.assert_array_equal(response.outputs["y"].array, requests[index].inputs["x"].array * 10)


def test_a_request_that_names_a_method_stays_whole() -> None:
    requests = [make_request(0, 8), make_request(8, 8)]
    for request in requests:
        request.method = "f"
    shares = share_out(requests, 2, is_batched=True)
    assert [[part is request for part in share.requests] for share, request in zip(shares, requests, strict=True)] == [
        [True],
        [True],
    ]


def test_the_first_error_of_a_part_is_the_requests() -> None:
    request = make_request(0, 4)
    shares = share_out([request], 2, is_batched=True)
    kept = Kept()
    gathering = Gathering([request], shares, kept)
    gathering.replies(shares[1]).send(0, InferResponse("m", 1, error=ServableError("internal", "second")))
    assert kept.sent == []
    gathering.replies(shares[0]).send(0, answer(shares[0].requests[0]))
    [(index, response)] = kept.sent
    assert response.error is not None
    assert (index, response.error.message) == (0, "second")


def test_parts_of_different_shape_are_an_error() -> None:
    request = make_request(0, 2)
    shares = share_out([request], 2, is_batched=True)
    kept = Kept()
    gathering = Gathering([request], shares, kept)
    for share, width in zip(shares, (1, 2), strict=True):
        outputs = {"y": Tensor("y", "INT64", np.zeros((1, width), np.int64))}
        gathering.replies(share).send(0, InferResponse("m", 1, outputs))
    error = kept.sent[0][1].error
    assert error is not None
    assert error.message == "Output 'y' differs in shape between instances."
