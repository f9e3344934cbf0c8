"""Locks between the processes of a repository that write to its ``mlruns``."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from smollm.state.state_lock import LocksUnsupported, lock_file

LOCK_SECONDS = 60.0
"""How long `locked` waits for another process; what it guards takes seconds."""


def try_lock(file: IO[Any]) -> bool:
    """Lock an open file until it is closed; False where another process has it.

    A file system without locks (NFS without lockd, say) excludes nobody: two processes that send the same run then send
    the same points, which MLflow keeps once.
    """
    try:
        return lock_file(file)
    except LocksUnsupported:
        return True


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file at `path`.

    Raises:
        TimeoutError: another process holds it for longer than `LOCK_SECONDS`.
        OSError: the file cannot be created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + LOCK_SECONDS
    with path.open("a") as file:
        while not try_lock(file):
            if time.monotonic() > end:
                raise TimeoutError(f"another process has held {path} for {LOCK_SECONDS:g} s")
            time.sleep(0.1)
        yield
