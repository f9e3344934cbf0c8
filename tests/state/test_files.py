"""Files written whole, and the errors of a disk as errors of a disk."""

import errno
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.structure import ROOT

from smollm.errors import StorageError, user_error
from smollm.state.files import disk_errors, replace_directory, sync_directory, write_atomically


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


@pytest.mark.parametrize("code", sorted(errno.errorcode), ids=errno.errorcode.get)
def test_whatever_a_disk_refuses_is_one_line(code: int) -> None:
    error = user_error(OSError(code, os.strerror(code), "/d/x"))
    assert isinstance(error, StorageError)
    if code in (errno.ENOSPC, errno.EDQUOT):
        expected = (
            f"the disk is full, cannot write /d/x ({os.strerror(code)}); free some space, then `dvc repro` continues"
        )
    else:
        expected = f"cannot read or write /d/x ({os.strerror(code)}); fix that, then `dvc repro` continues"
    assert str(error) == expected


def test_an_error_of_the_disk_that_names_no_file_is_one_line_too() -> None:
    assert "cannot read or write a file (Stale file handle); fix" in str(
        user_error(OSError(errno.ESTALE, "Stale file handle"))
    )
    assert "the disk is full (No space left" in str(user_error(OSError(errno.ENOSPC, "No space left on device")))
    assert f"({os.strerror(errno.EIO)})" in str(user_error(OSError(errno.EIO, None)))


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
        BrokenPipeError(errno.EPIPE, "Broken pipe"),
        ChildProcessError(errno.ECHILD, "No child processes"),
        socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
        OSError("a library's own words"),
        ValueError("no error of the system"),
    ],
)
def test_a_fault_that_is_not_of_the_disk_keeps_its_traceback(error: Exception) -> None:
    assert user_error(error) is None


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_fsync_does_without(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    assert not sync_directory(tmp_path)
    write_atomically(tmp_path / "file", "text")
    assert (tmp_path / "file").read_text() == "text"


def test_an_fsync_that_fails_is_no_missing_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    assert sync_directory(tmp_path)
    (tmp_path / "file").write_text("old")
    monkeypatch.setattr(os, "fsync", fail)
    for act in (lambda: sync_directory(tmp_path), lambda: write_atomically(tmp_path / "file", "new")):
        with pytest.raises(OSError, match="Input/output error") as caught:
            act()
        assert str(caught.value.filename).startswith(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "no draft is left"
    assert (tmp_path / "file").read_text() == "old"


def test_a_published_folder_has_nothing_of_the_one_before(tmp_path: Path) -> None:
    for name in ("new", "old"):
        write_atomically(tmp_path / name / "deep" / name, name)
    replace_directory(tmp_path / "new", tmp_path / "old")
    assert [path.name for path in (tmp_path / "old" / "deep").iterdir()] == ["new"]
    assert (tmp_path / "old" / "deep" / "new").samefile(tmp_path / "new" / "deep" / "new")


def test_where_there_are_no_links_a_folder_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    write_atomically(tmp_path / "new" / "file", "text")
    replace_directory(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old" / "file").read_text() == "text"


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o027, 0o077])
def test_a_file_of_a_library_gets_the_permissions_that_the_umask_leaves(mask: int, tmp_path: Path) -> None:
    script = (
        f"import os; os.umask({mask}); from pathlib import Path; from smollm.state.files import apply_umask\n"
        "Path('file').touch(mode=0o600); apply_umask(Path('file'))"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env={"PYTHONPATH": f"{ROOT}/src"}, check=True)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~mask
