"""Which states are kept, and which are removed."""

import os
import shutil
import time
from pathlib import Path

import pytest
from support.live_states import edit, finish, nothing, record, state, train, write_workspace
from support.live_states import holder as running

from smollm.state import saved_state
from smollm.state.journal import Kind
from smollm.state.live_state import LiveState
from smollm.state.saved_state import SavedState, remove, remove_unneeded
from smollm.state.workspace import Workspace


def test_what_an_edit_abandoned_is_kept_until_the_stage_has_finished(workspace: Workspace) -> None:
    """Edit after edit, as one looks for a mistake: nothing that was trained goes, however many edits there are."""
    abandoned = []
    for number in range(1, 5):
        edit(workspace, number)
        abandoned.append(train(workspace, step=number).directory)
    edit(workspace, 5)
    with state(workspace) as current:
        assert [kept.directory for kept in current.abandoned()] == abandoned[::-1]
        assert [kept.step for kept in current.abandoned()] == [4, 3, 2, 1]


@pytest.mark.parametrize("at_end_of_make_repro", [False, True])
def test_the_newest_two_stay_when_the_stage_has_finished(workspace: Workspace, at_end_of_make_repro: bool) -> None:
    abandoned = []
    for number in range(1, 5):
        edit(workspace, number)
        abandoned.append(train(workspace).directory)
    train_again = abandoned[1]
    edit(workspace, 2)
    with state(workspace) as live:
        live.journal.event(3, "resumed from step 100")
    edit(workspace, 5)
    finished = finish(workspace)
    assert all(directory.exists() for directory in abandoned)
    said: list[str] = []
    closed: list[Path] = []
    if at_end_of_make_repro:
        remove_unneeded(workspace, said.append, closed.append)
    else:
        with LiveState("later", workspace, said.append, closed.append):
            pass
    assert {directory for directory in abandoned if directory.exists()} == {train_again, abandoned[3]}
    assert set(closed) == {abandoned[0], abandoned[2], finished.directory}
    assert sorted(line.split("(")[1][:-1] for line in said) == sorted(d.name for d in (abandoned[0], abandoned[2]))


def test_an_abandoned_state_without_work_is_removed_and_told_of(workspace: Workspace) -> None:
    with state(workspace) as first:
        first.journal.append(Kind.STEP, 1, train_loss=2.0)
    edit(workspace, 2)
    said: list[str] = []
    closed: list[Path] = []
    with state(workspace, said.append, closed.append):
        assert not first.directory.exists()
    assert closed == [first.directory]
    assert len(said) == 1
    assert first.fingerprint in said[0]


@pytest.mark.parametrize("work", ["checkpoints/step-00000001/model", "data/tokens/pretrain/train.bin"])
def test_what_a_stage_can_go_on_from_is_worth_keeping_and_a_torn_piece_is_not(work: str, workspace: Workspace) -> None:
    with state(workspace) as first:
        torn = first.directory / Path(work).parts[0] / ".torn.tmp"
        torn.parent.mkdir()
        torn.touch()
        assert not SavedState("train", first.directory).holds_work
        (first.directory / work).parent.mkdir(parents=True)
        (first.directory / work).touch()
    edit(workspace, 2)
    with state(workspace) as second:
        assert [kept.directory for kept in second.abandoned()] == [first.directory]


def test_a_state_says_what_it_holds(workspace: Workspace) -> None:
    live = train(workspace, step=4000, size=10**6)
    kept = SavedState("train", live.directory)
    assert kept.name == f"train/{live.fingerprint}"
    assert kept.step == 4000
    assert 10**6 < kept.bytes < 10**6 + 10**4
    assert kept.fingerprinted == {
        "command": "python3 -m train",
        "inputs": live.inputs,
        "params": {"seed": 1, "eps": 1e-5},
    }


def test_a_state_that_another_workspace_uses_is_not_removed(workspace: Workspace, tmp_path: Path) -> None:
    other = write_workspace(tmp_path / "elsewhere", workspace.root, "x = 3\n")
    theirs = state(workspace).directory
    with running(workspace), state(other) as mine:
        assert theirs.exists()
        assert mine.directory != theirs
        assert mine.abandoned() == []


def test_a_recorded_state_goes_when_any_stage_starts(workspace: Workspace) -> None:
    first = finish(workspace)
    with LiveState("later", workspace, nothing, nothing) as mine:
        mine.mark_complete()
    assert not first.directory.exists()
    assert mine.directory.exists(), "dvc.lock does not know it yet"


def test_a_state_whose_run_cannot_be_put_aside_is_kept(workspace: Workspace) -> None:
    def refuse(_: Path) -> None:
        raise OSError("no space left")

    first = finish(workspace)
    with LiveState("later", workspace, nothing, refuse):
        assert first.directory.exists()
    with LiveState("later", workspace, nothing, nothing):
        assert not first.directory.exists()


def test_an_unfinished_state_outlives_the_start_of_other_stages(workspace: Workspace) -> None:
    with state(workspace) as first:
        pass
    record(workspace, first)
    with LiveState("later", workspace, nothing, nothing):
        assert first.directory.exists()


def test_when_all_is_up_to_date_every_state_without_work_is_removed_but_those_in_use(workspace: Workspace) -> None:
    with state(workspace) as edited:
        pass
    said: list[str] = []
    closed: list[Path] = []
    with LiveState("later", workspace, nothing, nothing) as used:
        remove_unneeded(workspace, said.append, closed.append)
        assert used.directory.exists()
    assert closed == [edited.directory]
    assert not edited.directory.exists()
    assert len(said) == 1
    assert edited.fingerprint in said[0]


def test_a_state_in_use_is_not_removed_by_its_name(workspace: Workspace) -> None:
    with running(workspace):
        assert not remove(SavedState("train", state(workspace).directory), nothing)
        assert state(workspace).directory.exists()


def test_a_kill_during_a_removal_leaves_nothing_that_passes_for_a_state(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with state(workspace) as first:
        first.journal.append(Kind.STEP, 1, train_loss=2.0)
    edit(workspace, 2)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # killed before it got far
        with state(workspace):
            pass
    edit(workspace, 1)
    with state(workspace) as again:
        assert again.directory == first.directory
        assert again.journal.records() == []
    assert [path.name for path in first.directory.parent.iterdir()] == [first.fingerprint]


def test_a_state_of_another_workspace_that_is_still_there_is_kept(workspace: Workspace, tmp_path: Path) -> None:
    other = write_workspace(tmp_path / "elsewhere", workspace.root, "x = 3\n")
    with state(workspace) as mine:
        pass
    with state(other) as theirs:
        assert mine.directory.exists()
    shutil.rmtree(other.directory)  # as DVC does with a queued experiment that was killed, and may be queued again
    with state(workspace):
        assert theirs.directory.exists()
    weeks_ago = time.time() - 2 * saved_state._REQUEUE_SECONDS
    for path in theirs.directory.iterdir():
        os.utime(path, (weeks_ago, weeks_ago))
    with state(workspace):
        assert not theirs.directory.exists()


def test_what_another_workspace_that_is_gone_has_finished_is_removed(workspace: Workspace, tmp_path: Path) -> None:
    other = write_workspace(tmp_path / "elsewhere", workspace.root, "x = 3\n")
    with state(other) as theirs:
        theirs.mark_complete()
    shutil.rmtree(other.directory)
    with state(workspace):
        assert not theirs.directory.exists()
