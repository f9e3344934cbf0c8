"""The lock of a state, and what stands in for it on a file system without locks."""

import errno
import fcntl
import json
import os
import shutil
import socket
import threading
import time
from pathlib import Path

import psutil
import pytest
from support.live_states import edit, holder, state, train
from support.no_locks import no_locks

from smollm.errors import StateError
from smollm.state import live_state, state_lock
from smollm.state.saved_state import SavedState, remove
from smollm.state.state_lock import LocksUnsupported, StateLock, lock_file
from smollm.state.workspace import Workspace


@pytest.fixture(params=[errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def without_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """A file system without locks; the error that it gives."""
    code: int = request.param

    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(state_lock, "_CLAIM_SECONDS", 0.05)
    return code


def test_a_file_is_locked_for_one_process_alone(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as first, (tmp_path / "file").open("w") as second:
        assert lock_file(first)
        assert not lock_file(second)
    with (tmp_path / "file").open("w") as third:
        assert lock_file(third)


def test_a_missing_lock_is_told_from_a_failing_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(code: int) -> None:
        raise OSError(code, os.strerror(code))

    with (tmp_path / "file").open("w") as file:
        monkeypatch.setattr(fcntl, "flock", lambda *_: fail(errno.ENOLCK))
        with pytest.raises(LocksUnsupported):
            lock_file(file)
        monkeypatch.setattr(fcntl, "flock", lambda *_: fail(errno.EIO))
        with pytest.raises(OSError, match="Input/output error") as caught:
            lock_file(file)
    assert not isinstance(caught.value, LocksUnsupported)
    assert caught.value.filename == str(tmp_path / "file")


def test_what_is_missing_is_said_once_and_the_stage_runs(workspace: Workspace, without_locks: int) -> None:
    for _ in range(2):
        said: list[str] = []
        with state(workspace, said.append) as live:
            live.journal.event(0, "here")
        assert said == [
            f"train: the file system of {workspace.root}/.resume has no file locks ({os.strerror(without_locks)}): do "
            "not run it on two machines at once"
        ]
    assert not (live.directory / "claim").exists()


def test_folders_that_cannot_be_synced_are_said_once_and_the_stage_runs(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def refuse(descriptor: int) -> None:
        if os.path.isdir(f"/dev/fd/{descriptor}"):  # noqa: PTH112
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    said: list[str] = []
    with state(workspace, said.append) as live:
        live.journal.sync()
    assert said == [
        f"train: the file system of {workspace.root}/.resume has no fsync of folders: a power cut may cost the newest "
        "checkpoints"
    ]


@pytest.fixture
def preload(tmp_path: Path) -> str:
    """A library that takes flock away from a process."""
    return no_locks(tmp_path)


def test_without_locks_a_second_process_of_this_machine_is_refused_all_the_same(
    workspace: Workspace, without_locks: int, preload: str
) -> None:
    with holder(workspace, LD_PRELOAD=preload) as process:
        with pytest.raises(StateError, match=f"as process {process.pid};"):
            state(workspace).__enter__()
        assert not remove(SavedState("train", state(workspace).directory), lambda _: None)
        edit(workspace, 2)
        with pytest.raises(StateError, match=f"as process {process.pid};"):
            state(workspace).__enter__()
        edit(workspace, 1)
        process.kill()
        process.wait()
        with state(workspace):
            pass


def test_without_locks_a_process_that_was_killed_and_not_waited_for_is_dead(
    workspace: Workspace, without_locks: int, preload: str
) -> None:
    with holder(workspace, LD_PRELOAD=preload) as process:
        process.kill()  # a zombie from here on
        deadline = time.monotonic() + 30
        while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with state(workspace):
            pass


def test_without_locks_the_number_of_a_dead_process_may_be_anothers(workspace: Workspace, without_locks: int) -> None:
    live = train(workspace)
    claim = {"host": socket.gethostname(), "pid": os.getppid(), "started": time.time() - 10**6, "at": 0}
    (live.directory / "claim").write_text(json.dumps(claim))
    with state(workspace):
        pass


def test_without_locks_a_process_of_another_machine_is_taken_for_dead_once_it_writes_nothing(
    workspace: Workspace, without_locks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_state, "_UNSEEN_SECONDS", 0.5)
    live = train(workspace)
    (live.directory / "claim").write_text(json.dumps({"host": "node7", "pid": 1, "started": 0.0, "at": 0}))
    (live.directory / "lock").write_text(json.dumps({"workspace": ".", "pid": 1, "host": "node7"}))
    assert not remove(SavedState("train", live.directory), lambda _: None)
    said: list[str] = []
    began = time.monotonic()
    with state(workspace, said.append):
        assert time.monotonic() - began > 0.5
    assert said[0] == "train: waiting for process 1 on node7, which runs the same stage in another workspace"


def test_of_two_that_claim_a_state_at_once_one_gets_it(workspace: Workspace, without_locks: int) -> None:
    directory = train(workspace).directory
    got: list[bool] = []
    start = threading.Barrier(4, timeout=30)

    def claim() -> None:
        with StateLock(directory) as mine:
            start.wait()
            got.append(mine.acquire())
            start.wait()

    threads = [threading.Thread(target=claim) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == [False, False, False, True]


def test_a_lock_whose_state_was_removed_meanwhile_is_none(workspace: Workspace) -> None:
    directory = train(workspace).directory
    with StateLock(directory) as mine:
        shutil.rmtree(directory)
        assert not mine.acquire()
    with pytest.raises(FileNotFoundError):
        StateLock(directory)
