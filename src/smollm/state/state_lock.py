"""Which process holds a state: the one with the kernel's lock on the file ``lock`` in its folder, which also names it.

The kernel releases the lock when the process ends, however it ends. On a file system without locks (NFS without lockd,
some mounts of Lustre, CIFS and FUSE), the file ``claim`` names the process instead. Whether a process of this machine
is alive can be looked up; one of another machine counts as alive while files in the folder change.
"""

import errno
import fcntl
import json
import math
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from smollm.state.files import disk_errors, read_json, write_atomically

LEADER = "SMOLLM_LEADER"
"""Names, where several processes do the work of one, the process that started them and ends them all."""

LOCK_FILES = ("lock", "claim")
"""Of a state's folder: the file that the kernel locks, and the one that stands in for its lock."""

_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}

_CLAIM_SECONDS = 0.5
"""Longer than a process takes from reading that nobody claims a state to writing its own claim."""


_CLOCK_SECONDS = 60.0
"""How far the clock may be adjusted during a process's life: the start of a process is computed from the clock."""


class LocksUnsupported(OSError):
    """The file system has no locks."""


def lock_file(file: IO[Any]) -> bool:
    """Lock an open file until it is closed; returns False if another process holds the lock.

    Raises:
        LocksUnsupported: the file system has no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        kind = LocksUnsupported if error.errno in _UNSUPPORTED else OSError
        raise kind(error.errno, error.strerror, file.name) from None
    return True


@dataclass(frozen=True)
class Holder:
    """The process that holds a state, or held it last."""

    workspace: str | None = None
    """Where it runs, relative to the repository; None if it was killed before it wrote its name."""
    pid: int = 0
    """The process to stop: where several train together, the one that started them."""
    host: str = ""

    @classmethod
    def read(cls, path: Path) -> "Holder":
        values = read_json(path)
        return cls(values.get("workspace"), values.get("pid", 0), values.get("host", ""))

    def __str__(self) -> str:
        return f"process {self.pid}" + (f" on {self.host}" if self.host != socket.gethostname() else "")


class StateLock:
    """The lock of one state's folder, as a context manager that releases it.

    Attributes:
        unsupported: why the file system cannot lock, once that is known.
    """

    def __init__(self, directory: Path) -> None:
        """
        Raises:
            FileNotFoundError: the state is gone.
        """
        self._path, self._claim_path = (directory / name for name in LOCK_FILES)
        self._file = self._path.open("a", encoding="utf-8")
        self._claim: dict[str, Any] | None = None
        self.unsupported: LocksUnsupported | None = None

    def __enter__(self) -> "StateLock":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if self._claim is not None:
            with suppress(OSError):
                self._claim_path.unlink()

    def acquire(self, takes_over: bool = False) -> bool:
        """Lock the state, unless another process has it.

        Args:
            takes_over: where there are no locks, from a process of another machine.
        """
        try:
            return lock_file(self._file) and self._is_at_path()
        except LocksUnsupported as error:
            self.unsupported = error
            return self._claim_for_this_process(takes_over)

    def sign(self, workspace: str) -> None:
        """Name this process as the holder."""
        values = asdict(Holder(workspace, int(os.environ.get(LEADER, os.getpid())), socket.gethostname()))
        with disk_errors(self._path):
            self._file.truncate(0)
            self._file.write(json.dumps(values))
            self._file.flush()

    @property
    def holder(self) -> Holder:
        """The process that signed last."""
        return Holder.read(self._path)

    @property
    def is_elsewhere(self) -> bool:
        """Whether a claim, where there are no locks, is that of another machine."""
        return self.unsupported is not None and read_json(self._claim_path).get("host") != socket.gethostname()

    def _is_at_path(self) -> bool:
        """Whether the locked file is still the state's own: another process may have removed the state."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self._path.stat())
        except FileNotFoundError:
            return False

    def _claim_for_this_process(self, takes_over: bool) -> bool:
        """Write a claim and see whether it lasts: of two written at once, the second stands (Fischer's algorithm)."""
        there = read_json(self._claim_path)
        if there and _may_live(there) and not (takes_over and self.is_elsewhere):
            return False
        claim = {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid()), "at": time.time()}
        write_atomically(self._claim_path, json.dumps(claim))
        time.sleep(_CLAIM_SECONDS)
        if read_json(self._claim_path) != claim:
            return False
        self._claim = claim
        return True


def _may_live(claim: Mapping[str, Any]) -> bool:
    """Whether the process of a claim may be alive; a later one that has its number was started later."""
    return claim["host"] != socket.gethostname() or abs(_started(claim["pid"]) - claim["started"]) < _CLOCK_SECONDS


def _started(pid: int) -> float:
    """When a process of this machine was started, in seconds since the epoch; -inf where there is none."""
    import psutil

    try:
        process = psutil.Process(pid)
        return -math.inf if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return -math.inf
