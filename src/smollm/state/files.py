"""Files and folders: atomic writes, fsync, links, permissions, hashes."""

import errno
import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_CANNOT_SYNC = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""Errors of a file system without fsync, usually of folders (CIFS, FUSE)."""


def _umask() -> int:
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


_UMASK = _umask()  # once, while there is one thread: it can only be read by setting it


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by a file with this text; a reader, or a kill, sees the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with disk_errors(path), draft.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            sync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def write_json(path: Path, values: object) -> None:
    """Replace `path` by a JSON file, as `write_atomically` does."""
    write_atomically(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The values in a JSON file; empty if the file is missing or damaged."""
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return values


def sync(descriptor: int) -> bool:
    """Flush an open file or folder to the disk, to survive a power cut; returns False if that is unsupported."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
        return False
    return True


def sync_directory(path: Path) -> bool:
    """Make the names in a folder survive a power cut; returns False if the file system cannot."""
    with disk_errors(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            return sync(descriptor)
        finally:
            os.close(descriptor)


def apply_umask(path: Path) -> None:
    """Give a file that a library created with private permissions those of an ordinary new file."""
    path.chmod(0o666 & ~_UMASK)


def file_stats(directory: Path) -> Iterator[os.stat_result]:
    """The `stat` of each file below `directory`; files that vanish meanwhile are skipped."""
    for folder, _, names in os.walk(directory):
        for name in names:
            with suppress(OSError):
                yield (Path(folder) / name).lstat()


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` the same file as `source` without a second copy of its bytes, where possible."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def replace_directory(source: Path, target: Path) -> None:
    """Make the directory `target` hold the files of `source`, linked where possible."""
    with suppress(FileNotFoundError):
        target.lstat()
        shutil.rmtree(target)
    for file in sorted(source.rglob("*")):
        if file.is_file():
            link_or_copy(file, target / file.relative_to(source))


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Make disk errors name `path`, including those that a library reports as text (`... (os error 28)`).

    Raises:
        OSError: with the number of the error and a file.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    except Exception as error:
        code = re.search(r"\(os error (\d+)\)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error


def file_digest(path: Path, algorithm: str) -> str:
    """The hexadecimal digest of a file's contents by one of hashlib's algorithms."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
