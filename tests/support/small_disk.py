"""A disk that is full."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

_MOST_BYTES = 256 * 2**20


@contextmanager
def small_disk(directory: Path, kilobytes: int) -> Iterator[None]:
    """Mount a file system of that size at `directory`; the test is skipped without root."""
    directory.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(directory)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)


def fill(path: Path) -> None:
    """Write to `path` until the disk is full, which must be a small one."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while file.tell() < _MOST_BYTES:
            file.write(b"\0" * 4096)
        pytest.fail(f"{path} is on a large disk")
