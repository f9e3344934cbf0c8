"""Errors that a user can cause and fix: they end a stage with one line instead of a traceback."""

import errno
import os
import signal
import socket
from typing import Any


class PipelineError(RuntimeError):
    """Base of all errors that a user can fix; the message says how."""

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
    """Training cannot continue: non-finite numbers, out of memory, no such device."""


class NonFinite(TrainingError):
    """A step's loss or gradient is not finite."""

    def __init__(self, message: str, values: dict[str, Any]) -> None:
        super().__init__(message)
        self.values = values
        """The measurements of the step, and of each of its sequences."""


class StorageError(PipelineError):
    """The disk is full or too small, or cannot be read or written."""


STOP_TAG = 256
"""In place of a signal's number: a user stopped the run with the tag ``stop`` in MLflow."""


class Interrupted(PipelineError):
    """The stage was asked to stop; its state is saved."""

    def __init__(self, number: int, step: int | None = None) -> None:
        """
        Args:
            number: of the signal, or `STOP_TAG`.
            step: the last step taken; None for a stage without steps.
        """
        cause = "its tag `stop` in MLflow" if number == STOP_TAG else signal.Signals(number).name
        done = "; `dvc repro` continues"
        if step is not None:
            done = f" after step {step}; its state is saved, and `dvc repro` continues"
        super().__init__(f"stopped by {cause}{done}")
        self.exit_code = 128 + (signal.SIGTERM if number == STOP_TAG else number)


_NETWORK_ERRORS = {
    *(errno.EPIPE, errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET, errno.ENOTCONN, errno.ETIMEDOUT),
    *(errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH),
    *(errno.ECHILD, errno.ESRCH),
}
"""Error numbers of sockets, pipes and processes. With a file name they come from a disk, perhaps a network disk."""


def user_error(error: BaseException) -> PipelineError | None:
    """`error` as one that the user can fix; None if it is a bug.

    A PipelineError is returned unchanged, an error of the disk as a StorageError.
    """
    if isinstance(error, PipelineError):
        return error
    if not isinstance(error, OSError) or error.errno is None or isinstance(error, socket.gaierror):
        return None
    if error.filename is None and error.errno in _NETWORK_ERRORS:
        return None
    reason = error.strerror or os.strerror(error.errno)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        what = f", cannot write {error.filename}" if error.filename else ""
        return StorageError(f"the disk is full{what} ({reason}); free some space, then `dvc repro` continues")
    return StorageError(
        f"cannot read or write {error.filename or 'a file'} ({reason}); fix that, then `dvc repro` continues"
    )
