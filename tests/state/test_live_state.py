"""Live state: who may run a stage, what it goes on with, and what starts afresh."""

import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
from support.live_states import edit, finish, holder, nothing, record, state, train, write_workspace

from smollm.errors import StateError
from smollm.state import live_state
from smollm.state.journal import Kind
from smollm.state.live_state import LiveState
from smollm.state.workspace import Workspace


def test_an_unfinished_state_is_continued(workspace: Workspace) -> None:
    with state(workspace) as first:
        first.journal.append(Kind.STEP, 1, train_loss=2.0)
    with state(workspace) as again:
        assert again.directory == first.directory
        assert [record.step for record in again.journal.records()] == [1]


def test_finished_and_not_recorded_is_still_finished(workspace: Workspace) -> None:
    with state(workspace) as first:
        first.mark_complete()
    with state(workspace) as again:
        assert again.is_complete


def test_finished_and_recorded_was_forced_and_starts_afresh(workspace: Workspace) -> None:
    with state(workspace) as first:
        first.journal.append(Kind.STEP, 1, train_loss=2.0)
        first.mark_complete()
        (first.directory / "checkpoints").mkdir()
    record(workspace, first)
    said: list[str] = []
    with state(workspace, said.append) as again:
        assert not again.is_complete
        assert again.journal.records() == []
        assert not (again.directory / "checkpoints").exists()
    assert said == ["train: forced to run again; starting over"]


def test_recorded_with_other_params_is_not_this_result(workspace: Workspace) -> None:
    finish(workspace)
    lock = workspace.directory / "dvc.lock"
    lock.write_text(lock.read_text().replace("seed: 1", "seed: 7"))
    with state(workspace) as again:
        assert again.is_complete


def test_undoing_an_edit_goes_on_where_it_was(workspace: Workspace) -> None:
    first = train(workspace, step=4000)
    edit(workspace, 2)
    with state(workspace) as second:
        assert second.directory != first.directory
        assert [abandoned.directory for abandoned in second.abandoned()] == [first.directory]
    edit(workspace, 1)
    with state(workspace) as again:
        assert again.directory == first.directory
        assert [record.step for record in again.journal.records()] == [4000]
        assert list(again.directory.glob("checkpoints/step-*"))


def test_a_run_that_finished_during_an_edit_is_kept_and_used_once_that_is_undone(workspace: Workspace) -> None:
    with state(workspace) as first:
        edit(workspace, 2)
        first.mark_complete()
        with pytest.raises(StateError, match="changed while it ran"):
            first.check_unchanged()
    with state(workspace) as second:
        assert not second.is_complete
    edit(workspace, 1)
    with state(workspace) as again:
        assert again.is_complete


def test_an_orphan_of_this_workspace_is_named_and_left_alone(workspace: Workspace) -> None:
    with holder(workspace) as process:
        with pytest.raises(StateError, match=f"as process {process.pid}; .*kill {process.pid}"):
            state(workspace).__enter__()
        assert process.poll() is None


def test_an_orphan_with_other_inputs_is_refused_too(workspace: Workspace) -> None:
    with holder(workspace) as process:
        edit(workspace, 2)
        with pytest.raises(StateError, match=f"as process {process.pid};"):
            state(workspace).__enter__()


def test_another_workspace_of_the_repository_waits_for_the_same_state(workspace: Workspace, tmp_path: Path) -> None:
    other = write_workspace(tmp_path / "elsewhere", workspace.root)
    said: list[str] = []
    with holder(workspace) as process:

        def release(line: str) -> None:
            said.append(line)
            assert process.stdin is not None
            process.stdin.close()

        with state(other, release) as mine:
            assert mine.directory.parent.parent == workspace.root / ".resume"
    assert said == [f"train: waiting for process {process.pid}, which runs the same stage in another workspace"]


def test_a_wait_for_another_workspace_says_how_far_that_is(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_state, "_REMINDER_SECONDS", 0.01)
    mine = train(workspace, step=7)
    said: list[str] = []
    with holder(workspace) as process:

        def release_at_third(line: str) -> None:
            said.append(line)
            if len(said) == 3:
                assert process.stdin is not None
                process.stdin.close()

        with state(write_workspace(tmp_path / "elsewhere", workspace.root), release_at_third) as waiting:
            assert waiting.directory == mine.directory
    assert said[1].endswith(
        f"waiting for process {process.pid}, which runs the same stage in another workspace (at step 7)"
    )


def test_a_process_elsewhere_that_hangs_is_not_waited_for_without_end(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_state, "_SILENT_SECONDS", 0.3)
    other = write_workspace(tmp_path / "elsewhere", workspace.root)
    with holder(workspace) as process, pytest.raises(StateError, match=rf"has written nothing .*`kill {process.pid}`"):
        state(other).__enter__()


def test_a_process_elsewhere_that_goes_on_is_waited_for(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_state, "_SILENT_SECONDS", 1.0)
    other = write_workspace(tmp_path / "elsewhere", workspace.root)
    with holder(workspace) as process:
        began = time.monotonic()

        def go_on() -> None:
            for number in range(20):
                (state(workspace).directory / "progress").write_text(str(number))
                time.sleep(0.1)
            assert process.stdin is not None
            process.stdin.close()

        writer = threading.Thread(target=go_on)
        writer.start()
        with state(other):
            assert time.monotonic() - began > 1.5
        writer.join()


def test_an_edit_after_the_params_were_read_is_not_taken_for_what_ran(workspace: Workspace) -> None:
    noted = workspace.with_params()
    before = state(workspace).fingerprint
    edited = (workspace.directory / "params.yaml").read_text().replace("1", "7")
    (workspace.directory / "params.yaml").write_text(edited)
    with state(noted) as mine:
        assert mine.fingerprint == before
        with pytest.raises(StateError, match="changed while it ran"):
            mine.check_unchanged()


def test_the_lock_of_a_killed_process_is_free(workspace: Workspace) -> None:
    with holder(workspace) as process:
        process.kill()
        process.wait()
        with state(workspace) as mine:
            assert json.loads((mine.directory / "lock").read_text())["pid"] == os.getpid()


def test_a_process_that_is_dying_is_waited_for(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_state, "_DYING_SECONDS", 30)
    with holder(workspace) as process:
        death = threading.Timer(0.5, process.kill)
        death.start()
        with state(workspace) as mine:
            assert json.loads((mine.directory / "lock").read_text())["pid"] == os.getpid()
        death.join()


def test_a_forced_run_that_is_killed_while_it_clears_is_forced_again(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with state(workspace) as first:
        (first.directory / "checkpoints").mkdir()
        first.mark_complete()
    record(workspace, first)

    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(shutil, "rmtree", kill)
    with pytest.raises(Killed):
        state(workspace).__enter__()
    assert first.is_complete


@pytest.mark.parametrize("change", ["params.yaml", "code.py"])
def test_a_change_while_it_runs_is_noticed(change: str, workspace: Workspace) -> None:
    path = workspace.directory / change
    before = path.read_text()
    with state(workspace) as mine:
        mine.check_unchanged()
        path.write_text(before.replace("seed: 1", "seed: 2") + "\n# new\n")
        if change == "params.yaml":
            path.write_text("eps: 1.0e-5\n")
        with pytest.raises(StateError, match="changed while it ran"):
            mine.check_unchanged()
        path.write_text(before)
        mine.check_unchanged()


ODD_NAMES = ["a b", "50%20", "a?b=c", "a#b", "a:b", "[x]*", "ü猫", "'\"$HOME`", "-rf", "caf\udce9"]


@pytest.mark.parametrize("name", ODD_NAMES, ids=ascii)
def test_a_repository_may_have_any_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / name
    written = write_workspace(root / "other [1]" / name, root)
    monkeypatch.setenv("DVC_ROOT", os.fspath(root))
    workspace = Workspace.find(written.directory)
    assert workspace == written
    first = train(workspace)
    (file,) = root.glob(".resume/train/*/lock")
    assert json.loads(file.read_text())["workspace"] == f"other [1]/{name}"
    with holder(workspace) as process, pytest.raises(StateError, match=f"as process {process.pid};"):
        state(workspace).__enter__()
    edit(workspace, 2)
    with state(workspace) as second:
        assert [kept.directory for kept in second.abandoned()] == [first.directory]


@pytest.mark.parametrize("way", ["moved", "copied"])
def test_a_moved_or_copied_repository_goes_on_by_itself(way: str, tmp_path: Path) -> None:
    first = train(write_workspace(tmp_path / "before"))
    if way == "moved":
        (tmp_path / "before").rename(tmp_path / "after")
    else:
        shutil.copytree(tmp_path / "before", tmp_path / "after")
    workspace = Workspace(tmp_path / "after", tmp_path / "after")
    with state(workspace) as mine:
        assert mine.directory == tmp_path / "after" / first.directory.relative_to(tmp_path / "before")
        assert list(mine.directory.glob("checkpoints/step-*"))
    edit(workspace, 2)
    with state(workspace) as second:
        assert [kept.directory for kept in second.abandoned()] == [mine.directory]
    with LiveState("later", workspace, nothing, nothing):
        assert (tmp_path / "before").exists() == (way == "copied")
