"""Stopping a stage on SIGTERM or Ctrl-C: after its current step, with all of it saved."""

import signal
from types import FrameType


class StopSignal:
    """Turns the first SIGTERM or Ctrl-C into a request to stop after the step; a second one kills."""

    def __init__(self, second_kills: bool = True) -> None:
        """
        Args:
            second_kills: False in a group, where torchrun's agent forwards a signal that every process has already.
        """
        self.second_kills = second_kills
        self.received: int | None = None

    def __enter__(self) -> "StopSignal":
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        signal.signal(number, signal.SIG_DFL if self.second_kills else signal.SIG_IGN)
