"""Stopping a stage on SIGTERM or Ctrl-C: it finishes the current step and saves its state."""

import signal
import threading
from types import FrameType

from smollm.errors import STOP_TAG


class StopSignal:
    """Turns the first SIGTERM or Ctrl-C into a request to stop after the step; a second one kills."""

    def __init__(self, second_kills: bool = True, request: threading.Event | None = None) -> None:
        """
        Args:
            second_kills: False in a group, where torchrun's agent forwards a signal that every process has already.
            request: set where a user stops the run in MLflow.
        """
        self.second_kills = second_kills
        self._request = request
        self._signal: int | None = None

    @property
    def received(self) -> int | None:
        """The number of the signal; `STOP_TAG` if a user stops the run in MLflow; None if nothing asks to stop."""
        is_requested = self._request is not None and self._request.is_set()
        return STOP_TAG if is_requested and self._signal is None else self._signal

    def __enter__(self) -> "StopSignal":
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        signal.signal(number, signal.SIG_DFL if self.second_kills else signal.SIG_IGN)
