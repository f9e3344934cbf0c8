"""A disk that fails at a call of one's choice: every way in which the state package reaches the file system."""

import builtins
import errno
import fcntl
import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from smollm import state

_ALWAYS = (errno.EIO, errno.ESTALE, errno.ENOMEM)
_NAMING = (*_ALWAYS, errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR)
_CHANGING = (*_NAMING, errno.EPERM, errno.EROFS, errno.EBUSY, errno.EINVAL)
_GROWING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

ERRORS = {
    "open": (*_CHANGING, *_GROWING, errno.EEXIST, errno.EISDIR, errno.EMFILE, errno.ENFILE, errno.ENODEV, errno.ENXIO),
    "read": (*_ALWAYS, errno.EISDIR, errno.EINVAL),
    "write": (*_ALWAYS, *_GROWING, errno.EINVAL, errno.EPERM),
    "truncate": (*_ALWAYS, errno.EFBIG, errno.EINVAL, errno.EPERM, errno.EROFS),
    "close": (errno.EIO, errno.ENOSPC, errno.EDQUOT),
    "fsync": (*_ALWAYS, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP),
    "flock": (*_ALWAYS, errno.EWOULDBLOCK, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF),
    "mkdir": (*_CHANGING, errno.ENOSPC, errno.EDQUOT, errno.EMLINK, errno.EEXIST),
    "rename": (*_CHANGING, errno.ENOSPC, errno.EDQUOT, errno.EMLINK, errno.EISDIR, errno.ENOTEMPTY, errno.EXDEV),
    "replace": (*_CHANGING, errno.ENOSPC, errno.EDQUOT, errno.EMLINK, errno.EISDIR, errno.ENOTEMPTY, errno.EXDEV),
    "link": (*_CHANGING, errno.ENOSPC, errno.EDQUOT, errno.EMLINK, errno.EEXIST, errno.EXDEV, errno.ENOTSUP),
    "unlink": (*_CHANGING, errno.EISDIR),
    "rmdir": (*_CHANGING, errno.ENOTEMPTY, errno.EEXIST),
    "stat": (*_NAMING, errno.EOVERFLOW),
    "lstat": (*_NAMING, errno.EOVERFLOW),
    "fstat": (errno.EIO, errno.ESTALE, errno.EOVERFLOW),
    "scandir": (*_NAMING, errno.EMFILE, errno.ENFILE),
    "utime": (*_CHANGING,),
}
"""What each call may fail with, as errno(3) and the calls' own manual pages have it."""

_METHODS = {"read": "read", "readinto": "read", "readline": "read", "write": "write", "flush": "write"}
_METHODS |= {"truncate": "truncate", "close": "close"}


@dataclass
class FailingDisk:
    """Counts the calls of one operation below a folder; lets those fail that are asked to."""

    folder: Path
    operation: str
    code: int = 0
    """The error that a call gives; 0: none fails."""
    site: tuple[str, ...] = ()
    """The calls that fail: made from these lines of the state package."""
    lasts: bool = False
    """Whether all later calls of the operation fail as well."""
    sites: list[tuple[str, ...]] = field(default_factory=list)
    """Where calls were made from so far, each once."""
    failures: int = 0

    def check(self, operation: str, path: object) -> None:
        """Count a call, and raise its error if it is one to fail."""
        name = path if isinstance(path, int) else os.fspath(path)  # type: ignore[call-overload]
        if operation != self.operation or (isinstance(name, str) and not name.startswith(os.fspath(self.folder))):
            return
        site = _site()
        if site and site not in self.sites:
            self.sites.append(site)
        if self.code and (site == self.site or (self.lasts and self.failures)):
            self.failures += 1
            names = () if operation in ("read", "write", "truncate", "close", "fsync", "flock", "fstat") else (name,)
            raise OSError(self.code, os.strerror(self.code), *names)


def _site() -> tuple[str, ...]:
    """The lines of the state package that lead to this call, the innermost first."""
    package = os.fspath(Path(state.__file__).parent)
    lines, frame = [], sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith(package):
            lines.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}")
        frame = frame.f_back  # type: ignore[assignment]
    return tuple(lines)


class _File:
    """An open file whose operations may fail."""

    def __init__(self, file: Any, disk: FailingDisk) -> None:
        self._file, self._disk = file, disk

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._file, name)
        if name not in _METHODS:
            return value

        def call(*args: Any) -> Any:
            try:
                self._disk.check(_METHODS[name], self._file.name)
            finally:
                if name == "close":  # it is closed even then
                    value()
            return value(*args)

        return call

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Any]:
        for line in self._file:
            self._disk.check("read", self._file.name)
            yield line


@contextmanager
def failing(disk: FailingDisk) -> Iterator[None]:
    """Have the calls of `disk` fail, and no time pass while anything waits."""
    with pytest.MonkeyPatch.context() as patch:
        for operation in ("fsync", "mkdir", "rename", "replace", "link", "unlink", "rmdir", "stat", "lstat"):
            patch.setattr(os, operation, _checked(getattr(os, operation), operation, disk))
        for operation in ("fstat", "scandir", "utime"):
            patch.setattr(os, operation, _checked(getattr(os, operation), operation, disk))
        patch.setattr(os, "open", _checked(os.open, "open", disk))
        patch.setattr(fcntl, "flock", _checked(fcntl.flock, "flock", disk))
        opened = _opened(io.open, disk)
        patch.setattr(io, "open", opened)
        patch.setattr(builtins, "open", opened)
        slept = 0.0

        def sleep(seconds: float) -> None:
            nonlocal slept
            slept += seconds
            assert slept < 24 * 3600, "waits without end"

        monotonic = time.monotonic
        patch.setattr(time, "sleep", sleep)
        patch.setattr(time, "monotonic", lambda: monotonic() + slept)
        yield


def _checked(call: Callable[..., Any], operation: str, disk: FailingDisk) -> Callable[..., Any]:
    def checked(path: Any = ".", *args: Any, **kwargs: Any) -> Any:
        disk.check(operation, path.name if hasattr(path, "fileno") else path)
        return call(path, *args, **kwargs)

    return checked


def _opened(call: Callable[..., Any], disk: FailingDisk) -> Callable[..., Any]:
    def opened(path: Any, *args: Any, **kwargs: Any) -> Any:
        disk.check("open", path)
        file = call(path, *args, **kwargs)
        is_below = not isinstance(path, int) and os.fspath(path).startswith(os.fspath(disk.folder))
        return _File(file, disk) if is_below else file

    return opened
