"""Files written whole or not at all, and content digests as DVC computes them."""

import fnmatch
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by a file with this text; a reader, or a kill, sees the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with draft.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def write_json(path: Path, values: object) -> None:
    write_atomically(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def sync_directory(path: Path) -> None:
    """Make the names in a directory survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
    shutil.rmtree(target, ignore_errors=True)
    for file in sorted(source.rglob("*")):
        if file.is_file():
            link_or_copy(file, target / file.relative_to(source))


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raise as an OSError what a library tells in words of its own (`... (os error 28)`) of writing `path`."""
    try:
        yield
    except Exception as error:
        code = re.search(r"\(os error (\d+)\)", str(error))
        if code is None:
            raise
        raise OSError(int(code.group(1)), os.strerror(int(code.group(1))), str(path)) from error


def file_digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


IGNORED = ("__pycache__", "*.pyc", ".venv", ".resume", "mlruns")
"""What .dvcignore keeps from DVC's sight in any directory."""


def dvc_digest(path: Path) -> str | None:
    """The md5 that DVC gives a file or a directory (its ``.dir`` form); None where nothing is."""
    if path.is_file():
        return file_digest(path, "md5")
    if not path.is_dir():
        return None
    entries = [
        {"md5": file_digest(file, "md5"), "relpath": file.relative_to(path).as_posix()}
        for file in path.rglob("*")
        if file.is_file() and not any(map(_is_ignored, file.relative_to(path).parts))
    ]
    listing = json.dumps(sorted(entries, key=lambda entry: entry["relpath"]), sort_keys=True)
    return hashlib.md5(listing.encode(), usedforsecurity=False).hexdigest() + ".dir"


def _is_ignored(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in IGNORED)
