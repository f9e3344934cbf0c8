"""Live state: fingerprint, lock, what is kept, what is started afresh, what is removed."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from support.structure import ROOT

from smollm.errors import StateError
from smollm.state import live_state
from smollm.state.files import IGNORED, dvc_digest
from smollm.state.live_state import LiveState, drop_all
from smollm.state.workspace import Workspace, fingerprint_of

DVC_YAML = {
    "stages": {
        "train": {"cmd": "python3 -m train", "deps": ["code.py", "data"], "params": ["seed", "eps"], "outs": ["model"]},
        "later": {"cmd": "python3 -m later", "deps": ["data"], "params": ["seed"], "outs": ["result"]},
    }
}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump(DVC_YAML))
    (tmp_path / "params.yaml").write_text("seed: 1\neps: 1.0e-5\nother: 2\n")
    (tmp_path / "code.py").write_text("x = 1\n")
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "deep" / "a.txt").write_text("a")
    return Workspace(tmp_path, tmp_path)


def state(workspace: Workspace, said: list[str] | None = None, abandoned: list[Path] | None = None) -> LiveState:
    heard = [] if said is None else said
    gone = [] if abandoned is None else abandoned
    return LiveState("train", workspace, heard.append, gone.append)


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """An orphan is not waited for as long as in earnest."""
    monkeypatch.setattr(live_state, "_DYING_SECONDS", 0.2)


def record(workspace: Workspace, of: LiveState) -> None:
    """Write the dvc.lock that DVC writes when the stage has ended well."""
    entry = {
        "cmd": "python3 -m train",
        "deps": [{"path": path, "hash": "md5", "md5": digest, "size": 1} for path, digest in of.inputs.items()],
        "params": {"params.yaml": {"seed": 1, "eps": 1e-5}},
        "outs": [{"path": "model", "md5": "0" * 32}],
    }
    text = yaml.safe_dump({"schema": "2.0", "stages": {"train": entry}})
    (workspace.directory / "dvc.lock").write_text(text.replace("1.0e-05", "1e-05"))  # as DVC writes it


def test_an_unfinished_state_is_continued(workspace: Workspace) -> None:
    with state(workspace) as first:
        first.journal.append("step", 1, train_loss=2.0)
    with state(workspace) as again:
        assert again.directory == first.directory
        assert [record.step for record in again.journal.records()] == [1]


@pytest.mark.parametrize("change", ["code.py", "data/deep/a.txt", "params.yaml", "dvc.yaml"])
def test_another_input_param_or_command_is_another_state(change: str, workspace: Workspace) -> None:
    before = state(workspace).fingerprint
    path = workspace.directory / change
    path.write_text(path.read_text().replace("seed: 1", "seed: 2").replace("-m train", "-m other") + "\n# new\n")
    assert state(workspace).fingerprint != before


def test_a_param_that_the_stage_does_not_name_changes_nothing(workspace: Workspace) -> None:
    before = state(workspace).fingerprint
    (workspace.directory / "params.yaml").write_text("seed: 1\neps: 1.0e-5\nother: 3\n")
    assert state(workspace).fingerprint == before


def test_finished_and_not_recorded_is_still_finished(workspace: Workspace) -> None:
    with state(workspace) as first:
        first.mark_complete()
    with state(workspace) as again:
        assert again.is_complete


def test_finished_and_recorded_was_forced_and_starts_afresh(workspace: Workspace) -> None:
    with state(workspace) as first:
        first.journal.append("step", 1, train_loss=2.0)
        first.mark_complete()
        (first.directory / "checkpoints").mkdir()
    record(workspace, first)
    said: list[str] = []
    with state(workspace, said) as again:
        assert not again.is_complete
        assert again.journal.records() == []
        assert not (again.directory / "checkpoints").exists()
    assert said == ["train: forced to run again; starting from its beginning"]


def test_recorded_with_other_params_is_not_this_result(workspace: Workspace) -> None:
    with state(workspace) as first:
        first.mark_complete()
    record(workspace, first)
    lock = workspace.directory / "dvc.lock"
    lock.write_text(lock.read_text().replace("seed: 1", "seed: 7"))
    with state(workspace) as again:
        assert again.is_complete


def test_an_abandoned_state_is_removed_and_told_of(workspace: Workspace) -> None:
    with state(workspace) as first:
        first.journal.append("step", 1, train_loss=2.0)
    (workspace.directory / "code.py").write_text("x = 2\n")
    said: list[str] = []
    abandoned: list[Path] = []
    with state(workspace, said, abandoned):
        assert not first.directory.exists()
    assert abandoned == [first.directory]
    assert len(said) == 1
    assert first.fingerprint in said[0]


HOLD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from smollm.state.live_state import LiveState
from smollm.state.workspace import Workspace
workspace = Workspace(Path(sys.argv[1]), Path(sys.argv[2]))
with LiveState("train", workspace, print, print):
    print("holding", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(workspace: Workspace) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the stage's state until its input is closed."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, workspace.directory, workspace.root, ROOT / "src"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "holding\n"
        yield process
        process.kill()


def test_an_orphan_of_this_workspace_is_named_and_left_alone(workspace: Workspace) -> None:
    with holder(workspace) as process:
        with pytest.raises(StateError, match=f"got process {process.pid} still at it; .*kill {process.pid}"):
            state(workspace).__enter__()
        assert process.poll() is None


def test_an_orphan_with_other_inputs_is_refused_too(workspace: Workspace) -> None:
    with holder(workspace) as process:
        (workspace.directory / "code.py").write_text("x = 2\n")
        with pytest.raises(StateError, match=f"got process {process.pid} still at it"):
            state(workspace).__enter__()


def test_another_workspace_of_the_repository_waits_for_the_same_state(workspace: Workspace, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    for name in ("dvc.yaml", "params.yaml", "code.py", "data/deep/a.txt"):
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        (other / name).write_bytes((workspace.directory / name).read_bytes())
    said: list[str] = []
    with holder(workspace) as process:

        def release(line: str) -> None:
            said.append(line)
            assert process.stdin is not None
            process.stdin.close()

        with LiveState("train", Workspace(other, workspace.root), release, lambda _: None) as mine:
            assert mine.directory.parent.parent == workspace.root / ".resume"
    assert said == [f"train: waiting for process {process.pid}, which computes the same elsewhere"]


def test_a_state_that_another_workspace_uses_is_not_removed(workspace: Workspace, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    for name in ("dvc.yaml", "params.yaml", "data/deep/a.txt"):
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        (other / name).write_bytes((workspace.directory / name).read_bytes())
    (other / "code.py").write_text("x = 3\n")
    theirs = state(workspace).directory
    with holder(workspace), state(Workspace(other, workspace.root)) as mine:
        assert theirs.exists()
        assert mine.directory != theirs


def test_an_edit_after_the_params_were_read_is_not_taken_for_what_ran(workspace: Workspace) -> None:
    noted = workspace.with_params()
    before = state(workspace).fingerprint
    edited = (workspace.directory / "params.yaml").read_text().replace("1", "7")
    (workspace.directory / "params.yaml").write_text(edited)
    with state(noted) as mine:
        assert mine.fingerprint == before
        with pytest.raises(StateError, match="must stay as they are"):
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


def test_a_recorded_state_goes_when_any_stage_starts(workspace: Workspace) -> None:
    for stage in ("train", "later"):
        with LiveState(stage, workspace, print, print) as mine:
            mine.mark_complete()
        if stage == "train":
            record(workspace, mine)
            first = mine.directory
    assert not first.exists()
    assert mine.directory.exists(), "dvc.lock does not know it yet"


def test_a_state_whose_run_cannot_be_put_aside_is_kept(workspace: Workspace) -> None:
    def refuse(_: Path) -> None:
        raise OSError("no space left")

    with state(workspace) as first:
        first.mark_complete()
    record(workspace, first)
    with LiveState("later", workspace, print, refuse):
        assert first.directory.exists()
    with LiveState("later", workspace, print, lambda _: None):
        assert not first.directory.exists()


def test_an_unfinished_state_outlives_the_start_of_other_stages(workspace: Workspace) -> None:
    with state(workspace) as first:
        pass
    record(workspace, first)
    with LiveState("later", workspace, print, print):
        assert first.directory.exists()


def test_when_all_is_up_to_date_every_state_is_dropped_but_those_in_use(workspace: Workspace) -> None:
    with state(workspace) as edited:
        pass
    said: list[str] = []
    abandoned: list[Path] = []
    with LiveState("later", workspace, print, print) as used:
        drop_all(workspace, said.append, abandoned.append)
        assert used.directory.exists()
    assert abandoned == [edited.directory]
    assert not edited.directory.exists()
    assert len(said) == 1
    assert edited.fingerprint in said[0]


def test_a_kill_during_a_removal_leaves_nothing_that_passes_for_a_state(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with state(workspace) as first:
        first.journal.append("step", 1, train_loss=2.0)
    (workspace.directory / "code.py").write_text("x = 2\n")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # killed before it got far
        with state(workspace):
            pass
    (workspace.directory / "code.py").write_text("x = 1\n")
    with state(workspace) as again:
        assert again.directory == first.directory
        assert again.journal.records() == []
    assert [path.name for path in first.directory.parent.iterdir()] == [first.fingerprint]


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


def test_dvc_root_names_the_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DVC_ROOT", "/repository")
    assert Workspace.find(tmp_path).root == Path("/repository")
    monkeypatch.delenv("DVC_ROOT")
    assert Workspace.find(tmp_path).root == tmp_path


def test_digests_are_dvcs(tmp_path: Path) -> None:
    from dvc.repo import Repo

    (tmp_path / ".dvcignore").write_bytes((ROOT / ".dvcignore").read_bytes())
    for name in ("b.txt", "deep/a.txt", "deep/ü b.txt", "deep/__pycache__/a.py", "a.pyc", "deep/.venv/bin/python"):
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_text(name)
    Repo.init(str(tmp_path), no_scm=True).close()
    (tmp_path / "one.txt").write_text("one")
    with Repo(str(tmp_path)) as repo:
        for name in ("folder", "one.txt"):
            (added,) = repo.add(str(tmp_path / name))
            assert added.outs[0].hash_info.value == dvc_digest(tmp_path / name)
    assert {line for line in (ROOT / ".dvcignore").read_text().splitlines() if line[0] != "#"} == set(IGNORED)
    assert dvc_digest(tmp_path / "nothing") is None


def test_the_fingerprint_depends_on_each_of_its_parts() -> None:
    prints = {
        fingerprint_of("a", {"x": "1"}, {"p": 1}),
        fingerprint_of("b", {"x": "1"}, {"p": 1}),
        fingerprint_of("a", {"x": "2"}, {"p": 1}),
        fingerprint_of("a", {"x": None}, {"p": 1}),
        fingerprint_of("a", {"x": "1"}, {"p": 2}),
    }
    assert len(prints) == 5


@pytest.mark.parametrize("change", ["params.yaml", "code.py"])
def test_a_change_while_it_runs_is_noticed(change: str, workspace: Workspace) -> None:
    path = workspace.directory / change
    before = path.read_text()
    with state(workspace) as mine:
        mine.check_unchanged()
        path.write_text(before.replace("seed: 1", "seed: 2") + "\n# new\n")
        if change == "params.yaml":
            path.write_text("eps: 1.0e-5\n")
        with pytest.raises(StateError, match="must stay as they are while it runs"):
            mine.check_unchanged()
        path.write_text(before)
        mine.check_unchanged()


def test_a_state_of_another_workspace_that_is_still_there_is_kept(workspace: Workspace, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    for name in ("dvc.yaml", "params.yaml", "data/deep/a.txt"):
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        (other / name).write_bytes((workspace.directory / name).read_bytes())
    (other / "code.py").write_text("x = 3\n")
    with state(workspace) as mine:
        pass
    with state(Workspace(other, workspace.root)) as theirs:
        assert mine.directory.exists()
    shutil.rmtree(other)  # as DVC removes the folder of a queued experiment that was killed, and may be queued again
    with state(workspace):
        assert theirs.directory.exists()
    weeks_ago = time.time() - 2 * live_state._PATIENCE_SECONDS
    os.utime(theirs.directory, (weeks_ago, weeks_ago))
    with state(workspace):
        assert not theirs.directory.exists()


def test_what_another_workspace_that_is_gone_has_finished_is_removed(workspace: Workspace, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    for name in ("dvc.yaml", "params.yaml", "data/deep/a.txt"):
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        (other / name).write_bytes((workspace.directory / name).read_bytes())
    (other / "code.py").write_text("x = 3\n")
    with state(Workspace(other, workspace.root)) as theirs:
        theirs.mark_complete()
    shutil.rmtree(other)
    with state(workspace):
        assert not theirs.directory.exists()
