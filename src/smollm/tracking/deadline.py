"""A limit to how long MLflow may keep a stage waiting."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager


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
            raise TimeoutError("it answers too slowly to be waited for")
