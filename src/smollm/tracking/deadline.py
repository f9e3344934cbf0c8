"""Limits to how long MLflow may keep a stage, or a command, waiting."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class Deadline:
    """A budget of seconds, spent while `waiting` and only then; unlimited until `limit` is called."""

    def __init__(self, seconds: float = math.inf) -> None:
        self._left, self._end = seconds, time.monotonic() + seconds

    def limit(self, seconds: float) -> None:
        """Allow `seconds` in all; a later call cannot raise an earlier limit."""
        self._left = min(self._left, seconds)

    @contextmanager
    def waiting(self) -> Iterator[float]:
        """Spend the budget until the block ends; gives the seconds that are left."""
        began = time.monotonic()
        self._end = began + self._left
        try:
            yield max(self._left, 0.0)
        finally:
            self._left -= time.monotonic() - began

    @property
    def is_over(self) -> bool:
        return time.monotonic() > self._end

    def check(self) -> None:
        """
        Raises:
            TimeoutError: the budget is spent.
        """
        if self.is_over:
            raise TimeoutError("no answer in time")


def within(seconds: float, action: Callable[[], T]) -> T:
    """The result of `action`, which runs in a thread that is left behind if it takes longer.

    Raises:
        TimeoutError: it does.
        Exception: what `action` raises.
    """
    outcome: list[T | Exception] = []

    def act() -> None:
        try:
            outcome.append(action())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError(f"no answer within {seconds:g} s")
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]
