"""The lock of a live state: one process at a time uses it, and the lock names that process, its holder.

The kernel locks the file ``lock`` in the state's folder, and releases it when the process ends, however it ends. On a
file system without locks (NFS without lockd, some mounts of Lustre, CIFS and FUSE) a second file, ``claim``, takes
their place: it names a process, which holds the state for as long as it lives. A process of another machine counts as
alive as long as files in the folder change.
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
"""Environment variable with the pid of the process that started, and ends, all processes of a group."""

LOCK_FILES = ("lock", "claim")
"""Files of a state's folder: the one that the kernel locks, and its substitute on a file system without locks."""

_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}

_CLAIM_SECONDS = 0.5
"""How long to wait after writing a claim: a process that saw no claim before has written its own by then."""

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
    """Where it runs, relative to the repository; None if it was killed before it signed the lock."""
    pid: int = 0
    """Of the process to stop; of a group, the process that started the group."""
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
        """Lock the state; returns False if another process holds it.

        Args:
            takes_over: without locks in the file system, ignore the claim of a process of another machine.
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
        """Whether the file system has no locks, and a process of another machine claims the state."""
        return self.unsupported is not None and read_json(self._claim_path).get("host") != socket.gethostname()

    def _is_at_path(self) -> bool:
        """Whether the locked file is still the state's own: another process may have removed the state."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self._path.stat())
        except FileNotFoundError:
            return False

    def _claim_for_this_process(self, takes_over: bool) -> bool:
        """Write a claim and see whether it stays: of two at once the later one does (Fischer's mutual exclusion)."""
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
    """Whether the process of a claim may be alive. (Another process with its pid has another start time.)"""
    return claim["host"] != socket.gethostname() or abs(_started(claim["pid"]) - claim["started"]) < _CLOCK_SECONDS


def _started(pid: int) -> float:
    """When a process of this machine was started, in seconds since the epoch; -inf if it does not run."""
    import psutil

    try:
        process = psutil.Process(pid)
        return -math.inf if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return -math.inf
