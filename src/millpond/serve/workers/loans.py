"""`Loans`: places of an arena that are filled before they are tensors, such as a body that is read from a socket.

The bytes of a large request go from the socket to where its worker reads them, so they are not copied again. A loan is
an array; its place falls free when the array and all views on it are gone here, and the other side has read what was
sent of it. Called by `TensorPort`; not thread-safe, but arrays may be dropped on any thread.
"""

from __future__ import annotations

import weakref
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millpond.serve.workers.arena import ArenaWriter

_MOST_VIEWS = 6  # between a tensor and the loan it is a view of


class _Loan(weakref.ref[NDArray[np.uint8]]):
    __slots__ = ("address", "is_over", "key", "num_sent", "offset")
    address: int
    key: int  # the identity of the array
    offset: int
    num_sent: int  # tensors in it that the other side may still read
    is_over: bool


class Loans:
    """The loans of one arena.

    Args:
        writer: Its own side's.
    """

    def __init__(self, writer: ArenaWriter) -> None:
        self._writer = writer
        self._loans: dict[int, _Loan] = {}  # by the identity of the array
        self._sent: dict[int, _Loan] = {}  # by the place of the tensor
        self._dropped: deque[_Loan] = deque()

    def lend(self, num_bytes: int) -> NDArray[np.uint8] | None:
        """Returns a place for so many bytes; None when there is none."""
        self._collect()
        offset = self._writer.allocate(num_bytes)
        if offset is None:
            return None
        array = self._writer.view(offset, num_bytes)
        loan = _Loan(array, self._dropped.append)
        loan.address, loan.offset, loan.num_sent, loan.is_over = _address(array), offset, 0, False
        loan.key = id(array)
        self._loans[loan.key] = loan
        return array

    def send(self, array: NDArray[np.generic]) -> int | None:
        """Returns where in the arena a tensor lies that is to be sent; None when it must be copied there."""
        if self._dropped:
            self._collect()
        if not self._loans or not (array.flags.c_contiguous and array.flags.aligned):
            return None
        loan = self._find(array)
        if loan is None:
            return None
        offset = loan.offset + _address(array) - loan.address
        if offset in self._sent:  # the other side tells places apart by where they are
            return None
        self._sent[offset] = loan
        loan.num_sent += 1
        return offset

    def free(self, offset: int) -> bool:
        """Takes note that the other side has read a tensor; False when it was not in a loan."""
        loan = self._sent.pop(offset, None)
        if loan is None:
            return False
        loan.num_sent -= 1
        self._end(loan)
        return True

    def _find(self, array: NDArray[np.generic]) -> _Loan | None:
        base: Any = array
        for _ in range(_MOST_VIEWS):
            if isinstance(base, memoryview):
                base = base.obj
            elif isinstance(base, np.ndarray):
                if (loan := self._loans.get(id(base))) is not None and loan() is base:
                    return loan
                base = base.base
            else:
                return None
        return None

    def _collect(self) -> None:
        while self._dropped:
            loan = self._dropped.popleft()
            loan.is_over = True
            if self._loans.get(loan.key) is loan:  # another array may have its identity by now
                del self._loans[loan.key]
            self._end(loan)

    def _end(self, loan: _Loan) -> None:
        if loan.is_over and not loan.num_sent:
            self._writer.free(loan.offset)


def _address(array: NDArray[Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
