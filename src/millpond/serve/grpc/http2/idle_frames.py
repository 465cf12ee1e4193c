"""`IdleFrames`: how many frames a client has sent that ask for nothing; too many end its connection."""

from __future__ import annotations

from millpond.serve.grpc.http2.frames import ENHANCE_YOUR_CALM, Broken

_MOST = 10_000  # without a message between them
_FORGIVEN_PER_S = 500  # clients of long streams ping and open windows


class IdleFrames:
    """The frames of one connection."""

    def __init__(self) -> None:
        self._num = 0

    def count(self) -> None:
        """Takes note of one.

        Raises:
            Broken: It was one too many.
        """
        self._num += 1
        if self._num > _MOST:
            raise Broken(ENHANCE_YOUR_CALM, "too many frames that ask for nothing")

    def forget(self) -> None:
        """A message was complete: the client wants something."""
        self._num = 0

    def forgive(self) -> None:
        """Another second has passed."""
        self._num = max(0, self._num - _FORGIVEN_PER_S)
