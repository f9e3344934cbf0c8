"""Files written whole, and the errors of a disk as errors of a disk."""

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from smollm.errors import StorageError, user_error
from smollm.state.files import disk_errors, write_atomically


def test_an_error_that_a_library_puts_in_words_is_told_as_the_disks(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError) as caught, disk_errors(tmp_path):
        save_file({"a": torch.ones(1)}, tmp_path)
    assert caught.value.filename == str(tmp_path)
    with pytest.raises(OSError, match="No space left on device") as full, disk_errors(tmp_path / "x"):
        raise RuntimeError("I/O error: No space left on device (os error 28)")
    assert full.value.errno == errno.ENOSPC


def test_any_other_error_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="wrong"), disk_errors(tmp_path):
        raise ValueError("wrong")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "file.txt"
    write_atomically(path, "old\r\n")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("killed")))
        with pytest.raises(OSError, match="killed"):
            write_atomically(path, "new")
    assert path.read_bytes() == b"old\r\n"
    write_atomically(path, "new")
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize(
    ("code", "line"),
    [
        (errno.ENOSPC, "the disk must have room for /d/x, got 'No space left on device'; free some"),
        (errno.EROFS, "must be readable and writable, got 'Read-only file system' for /d/x; mend that"),
        (errno.EACCES, "must be readable and writable, got 'Permission denied' for /d/x; mend that"),
    ],
)
def test_what_a_disk_refuses_is_one_line(code: int, line: str) -> None:
    error = user_error(OSError(code, os.strerror(code), "/d/x"))
    assert isinstance(error, StorageError)
    assert line in str(error)
    assert user_error(OSError(errno.ENOTDIR, "x")) is None
