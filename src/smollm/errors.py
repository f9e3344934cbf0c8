"""The errors that a user can cause and fix: each ends a stage with one line, not a traceback."""

import errno
import os
import signal
import socket
from typing import Any


class PipelineError(RuntimeError):
    """Base of all errors whose message tells the user what to do."""

    exit_code = 1
    """Exit code of the program that this error ends."""


class ConfigError(PipelineError, ValueError):
    """One or more settings are refused; the message has a line for each of them."""


class CorpusError(PipelineError):
    """The text to train on, or the tokenizer, cannot be used."""


class CheckpointError(PipelineError):
    """A checkpoint is missing, damaged, or belongs to something else."""


class StateError(PipelineError):
    """The live state of a stage is in use by another process, or no longer fits what the stage reads."""


class TrainingError(PipelineError):
    """Training cannot go on: non-finite numbers, no memory, no such device."""


class NonFinite(TrainingError):
    """A step's loss or gradient is not finite."""

    def __init__(self, message: str, values: dict[str, Any]) -> None:
        super().__init__(message)
        self.values = values
        """The step in numbers: its own, and those of each of its sequences."""


class StorageError(PipelineError):
    """The disk is full, or will be, or refuses to be read or written."""


class Interrupted(PipelineError):
    """A signal asked the stage to stop; its state is saved."""

    def __init__(self, signal_number: int, step: int) -> None:
        name = signal.Signals(signal_number).name
        super().__init__(f"stopped by {name} after step {step}, all of it saved; `dvc repro` continues from there")
        self.exit_code = 128 + signal_number


_NETWORK_ERRORS = {
    *(errno.EPIPE, errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET, errno.ENOTCONN, errno.ETIMEDOUT),
    *(errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH),
    *(errno.ECHILD, errno.ESRCH),
}
"""Error numbers of sockets, pipes and processes. An error that names a file is one of a disk, a network disk say."""


def user_error(error: BaseException) -> PipelineError | None:
    """Turn `error` into one that the user can fix; None if it is a bug.

    A PipelineError is returned as it is, an error of the disk as a StorageError.
    """
    if isinstance(error, PipelineError):
        return error
    if not isinstance(error, OSError) or error.errno is None or isinstance(error, socket.gaierror):
        return None
    if error.filename is None and error.errno in _NETWORK_ERRORS:
        return None
    reason = error.strerror or os.strerror(error.errno)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" for {error.filename}" if error.filename else ""
        return StorageError(f"the disk must have room{where}, got {reason!r}; free some, then `dvc repro` continues")
    return StorageError(
        f"the disk must be readable and writable, got {reason!r} for {error.filename or 'a file'}; fix that, then "
        "`dvc repro` continues"
    )
